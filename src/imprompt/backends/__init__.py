"""The denoiser of a pipeline in another runtime: OpenVINO, on the CPU.

graph        the U-Net as a function of tensors: keys, values and weights of every layer are inputs
conversion   the graph as files in the user's cache, by the hash of the weights
trial        the first compilation, in a process of its own, which may crash
unet_call    one call of the U-Net as inputs of the graph, or the reason why it cannot be
snapshot     whether the U-Net still computes what it did when it was converted
acceleration the forward pass that takes the place of the U-Net's own
"""
