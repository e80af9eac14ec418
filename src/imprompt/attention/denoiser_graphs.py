"""CUDA graphs of a U-Net's forward pass, one for each shape of its inputs.

A CUDA graph repeats recorded kernels on recorded addresses, so all that changes from call to call is copied
to fixed addresses first: latents, time step, text, the residuals of a ControlNet, and K', λV', masks and LoRA
strengths of every layer. No Python runs in a replay, and nothing waits for the device. The text's K and V are
computed when the text changes, outside the graph.

The hooks of an attached adapter run before `forward`, so they set the layers' inputs as always.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils import _pytree as pytree

from imprompt.attention.diffusers_internals import get_pipeline_denoiser, is_compiled
from imprompt.attention.processor import DecoupledAttention
from imprompt.attention.terms import LayerState
from imprompt.errors import AttachmentError

MAX_GRAPHS = 8
"""The most graphs of one U-Net; each keeps its activations. The one used least recently goes first."""

Run = Callable[[], Any]
"""Computes the outputs from tensors at fixed addresses."""

Capture = Callable[[Run], tuple[Callable[[], None], Any]]
"""Records a computation; returns what repeats it, and the outputs, whose addresses stay the same."""


def capture_cuda_graph(run: Run) -> tuple[Callable[[], None], Any]:
    """Record a computation as a CUDA graph, after two runs that choose algorithms and allocate."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run()
    return graph.replay, outputs


class StaticTensor:
    """A tensor at a fixed address, into which others are copied.

    Args:
        source: its first values
    """

    def __init__(self, source: Tensor) -> None:
        self.tensor = torch.empty_like(source, memory_format=torch.preserve_format)
        self._source: Tensor | None = None
        self._version = -1
        self.update(source)

    def update(self, source: Tensor) -> None:
        """Copy a tensor, unless it was the last one and is unchanged."""
        version = -1 if source.is_inference() else source._version
        if source is self._source and version == self._version >= 0:
            return
        self.tensor.copy_(source, non_blocking=True)
        self._source, self._version = source, version


class DenoiserInputs(NamedTuple):
    """All inputs of a U-Net's call.

    Args:
        options: the arguments of the call, by name
        layers: what acts in each attention layer; None where no adapter has a processor
    """

    options: dict[str, Any]
    layers: list[tuple[Any, Any] | None]


class DenoiserGraph:
    """One graph, for inputs of one shape.

    Args:
        forward: the U-Net's own forward
        processors: the processor of every attention layer, with its layer
        inputs: the first inputs
        capture: records the graph
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        processors: Sequence[tuple[Any, Any]],
        inputs: DenoiserInputs,
        capture: Capture,
    ) -> None:
        leaves, structure = pytree.tree_flatten(inputs)
        self._static = [StaticTensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        static: DenoiserInputs = pytree.tree_unflatten(
            [one.tensor if isinstance(one, StaticTensor) else one for one in self._static], structure
        )
        self._context = static.options["encoder_hidden_states"]
        self._states = [
            (attn, processor, LayerState(*layer))
            for (attn, processor), layer in zip(processors, static.layers, strict=True)
            if layer is not None
        ]
        self._replay, self._outputs = capture(lambda: self._run(forward, static.options))
        # A layer keeps the text's K and V only if it read the text itself; others compute them in the graph.
        self._texts = [
            (attn, state)
            for attn, _, state in self._states
            if state.text is not None and state.text.sources[0] is self._context
        ]

    def _run(self, forward: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        with _act(self._states):
            return forward(**options)

    @torch.no_grad()
    def __call__(self, inputs: DenoiserInputs) -> Any:
        """Copy the inputs, replay, and return copies of the outputs."""
        for static, leaf in zip(self._static, pytree.tree_leaves(inputs), strict=True):
            if isinstance(static, StaticTensor):
                static.update(leaf)
        for attn, state in self._texts:
            state.text.refresh(attn, self._context, state.loras)
        self._replay()
        return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self._outputs)


class DenoiserGraphs:
    """A U-Net's forward that replays a graph for each shape of its inputs; use it with `with`.

    Weights are read where they are. If one is moved or replaced, as by a LoRA that is fused, or a processor
    is replaced, graphs are recorded anew. Other changes of the U-Net (FreeU, hooks inside it) need `clear()`.
    With gradients the U-Net's own forward runs.

    Args:
        unet: the U-Net
        capture: records a graph
    """

    def __init__(self, unet: UNet2DConditionModel, capture: Capture = capture_cuda_graph) -> None:
        self.unet, self.capture = unet, capture
        self.captured = 0
        """The number of graphs that have been recorded."""
        self._forward = unet.forward
        self._parameters = tuple(inspect.signature(type(unet).forward).parameters)[1:]
        self._graphs: OrderedDict[object, DenoiserGraph] = OrderedDict()
        self._modules = list(unet.modules())
        self._weights: list[int] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "DenoiserGraphs":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the U-Net's own forward, if this took its place."""
        if vars(self.unet).get("forward") is self:
            del vars(self.unet)["forward"]
        self.clear()

    def clear(self) -> None:
        """Drop all graphs; the next calls record new ones."""
        self._graphs.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the U-Net's output."""
        processors = [(one, one.processor) for one in self._modules if isinstance(one, Attention)]
        states = [_find_state(processor) for _, processor in processors]
        is_split = any(state is not None and state.is_split for state in states)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_split:
            return self._forward(*args, **kwargs)
        inputs = DenoiserInputs(
            self._read_options(args, kwargs),
            [None if state is None else (state.terms, state.loras) for state in states],
        )
        with self._lock:
            self._check_weights()
            key = (_describe(inputs), tuple(type(processor) for _, processor in processors))
            graph = self._graphs.pop(key, None) or self._record(processors, inputs)
            self._graphs[key] = graph
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
            return graph(inputs)

    def _record(self, processors: Sequence[tuple[Any, Any]], inputs: DenoiserInputs) -> DenoiserGraph:
        self.captured += 1
        with torch.no_grad():
            return DenoiserGraph(self._forward, processors, inputs, self.capture)

    def _read_options(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, the time step as a tensor."""
        options = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        options["timestep"] = torch.as_tensor(options["timestep"], device=options["sample"].device)
        return options

    def _check_weights(self) -> None:
        """Drop all graphs if a weight or a module is another one than before."""
        if self._weights != self._list_weights():
            self.clear()
            self._modules = list(self.unet.modules())
            self._weights = self._list_weights()

    def _list_weights(self) -> list[int]:
        # Every call of the U-Net comes here, so no generators of torch, which take milliseconds.
        modules = self._modules
        weights = [x.data_ptr() for one in modules for x in one._parameters.values() if x is not None]
        return weights + [id(part) for one in modules for part in one._modules.values()]


def _find_state(processor: object) -> LayerState | None:
    return processor.find_running_state() if isinstance(processor, DecoupledAttention) else None


def _describe(inputs: DenoiserInputs) -> object:
    """Return a key for all that a graph cannot change: shapes, number formats, and what is no tensor."""
    options, structure = pytree.tree_flatten(inputs.options)
    terms = [
        layer and (len(layer[0]), tuple(tuple(lora.pairs) for lora in layer[1])) for layer in inputs.layers
    ]
    kinds = [
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
        for leaf in (*options, *pytree.tree_leaves(inputs.layers))
    ]
    device = inputs.options["sample"].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return str(structure), tuple(terms), tuple(kinds), autocast


@contextmanager
def _act(states: Sequence[tuple[Any, Any, LayerState]]) -> Iterator[None]:
    """Let these states act in their layers, in this thread, inside the context."""
    before = [processor.own_state for _, processor, _ in states]
    for _, processor, state in states:
        processor.replace_state(state)
    try:
        yield
    finally:
        for (_, processor, _), own in zip(states, before, strict=True):
            processor.replace_state(own)


# Installing


def find_graphs(unet: object) -> DenoiserGraphs | None:
    """Return the graphs of a U-Net, if it has any."""
    forward = vars(unet).get("forward")
    return forward if isinstance(forward, DenoiserGraphs) else None


def use_cuda_graphs(target: object, capture: Capture = capture_cuda_graph) -> DenoiserGraphs:
    """Compute a U-Net by CUDA graphs from now on; the returned context ends this.

    Call it before `adapter.use`. The first call with inputs of a new shape records a graph, which takes about
    three calls. Image prompts, λ, masks, layers and texts change without a new one.

    Args:
        target: a pipeline, or a U-Net
        capture: records a graph

    Raises:
        AttachmentError: no U-Net of Stable Diffusion or SDXL on a GPU, or one that is compiled or offloaded,
            or has graphs already
    """
    unet = target if isinstance(target, UNet2DConditionModel) else get_pipeline_denoiser(target)
    if not isinstance(unet, UNet2DConditionModel) or is_compiled(unet):
        kind = type(target).__name__
        raise AttachmentError(f"CUDA graphs are for a U-Net that is not compiled, not for {kind}")
    if capture is capture_cuda_graph and unet.device.type != "cuda":
        raise AttachmentError(f"CUDA graphs need a U-Net on a GPU, and this one is on {unet.device}")
    if "forward" in vars(unet):
        raise AttachmentError("this U-Net's forward is replaced already, by graphs, a cache or offloading")
    graphs = DenoiserGraphs(unet, capture)
    vars(unet)["forward"] = graphs
    return graphs
