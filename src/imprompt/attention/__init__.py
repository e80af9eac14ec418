"""Inside the denoiser: decoupled cross-attention, its layers, and how it is attached to a U-Net."""
