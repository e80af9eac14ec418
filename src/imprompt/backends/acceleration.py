"""OpenVINO computes the U-Net of a pipeline on the CPU, in place of torch.

    imprompt.accelerate(pipe)
    with adapter.attach(pipe), adapter.use("cat.png"):
        picture = pipe("wearing a hat").images[0]

What the graph cannot compute, torch computes as before, and a warning says why, once for every reason.
"""

import functools
import inspect
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from torch import Tensor

from imprompt.attention.diffusers_internals import get_pipeline_denoiser, is_compiled
from imprompt.backends.conversion import ConvertedGraph, check_openvino, convert_unet
from imprompt.backends.graph import CallSize, check_convertible
from imprompt.backends.snapshot import UNetSnapshot
from imprompt.backends.trial import compile_graph
from imprompt.backends.unet_call import Arrays, CallReader, GraphCall
from imprompt.errors import ConfigError
from imprompt.runtime.precision import DTYPES, find_fastest_precision

LIMITS = {"float32": 1e-4, "bfloat16": 0.2}
"""The largest difference from torch at the first call, as a part of torch's largest value.

In bfloat16 it only finds what is broken: on the embedded base a missing image prompt differs by 0.8 and
OpenVINO by 0.006; on Stable Diffusion 1.5's shapes with random weights OpenVINO differs by up to 0.1.
docs/speed.md says how good the pictures are."""

MAX_GRAPH_BYTES = 8 * 1024**3
"""The memory of the weights of all graphs of a U-Net; each size of a call has a graph of its own."""


def accelerate(
    pipe: object,
    *,
    dtype: torch.dtype | str = torch.float32,
) -> "Acceleration":
    """Let OpenVINO compute the U-Net of a pipeline on the CPU, for all adapters, references and scales.

    The first call for a base converts its U-Net, which takes seconds to a minute, into a file in the cache
    (`IMPROMPT_CACHE`, or `~/.cache/imprompt`). Nothing is converted again for another adapter, reference,
    scale, mask, schedule or ControlNet. Each size of a call is compiled once.

    Args:
        pipe: a diffusers pipeline of Stable Diffusion 1.5, 2.x or SDXL on the CPU, or its U-Net
        dtype: the number format in which it computes: float32, or bfloat16, faster on processors that have it
            and a little different, or "auto": the faster one on this machine. All else stays as it is

    Returns:
        what ends it: `detach()`, or the end of a `with`; otherwise it lasts as long as the U-Net

    Raises:
        MissingExtra: OpenVINO is not installed
        ConfigError: another number format or denoiser, or a U-Net that is compiled or offloaded
        OutputError: the cache cannot be written
    """
    name = str(DTYPES[find_fastest_precision()] if dtype == "auto" else dtype).removeprefix("torch.")
    if name not in LIMITS:
        raise ConfigError(f"OpenVINO computes in float32 or bfloat16 on the CPU, not in {name}")
    unet: Any = pipe if isinstance(pipe, torch.nn.Module) else get_pipeline_denoiser(pipe)
    check_convertible(unet)
    if unet.device.type != "cpu":
        raise ConfigError(f"OpenVINO computes on the CPU, and this U-Net is on {unet.device}: move it there")
    if isinstance(vars(unet).get("forward"), OpenVinoForward):
        del vars(unet)["forward"]
    if is_compiled(unet) or "forward" in vars(unet):
        raise ConfigError("this U-Net is compiled or offloaded, so OpenVINO cannot take its place")
    if hook := UNetSnapshot(unet).find_hook():
        raise ConfigError(f"OpenVINO cannot take the place of this U-Net: {hook}")
    check_openvino()
    vars(unet)["forward"] = forward = OpenVinoForward(unet, name)
    return Acceleration(unet, forward)


class Acceleration:
    """What ends the acceleration of a U-Net.

    Args:
        unet: the U-Net
        forward: its new forward pass
    """

    def __init__(self, unet: UNet2DConditionModel, forward: "OpenVinoForward") -> None:
        self._unet, self._forward = unet, forward

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def differences(self) -> dict[CallSize, float]:
        """How far the first call of each size was from torch's, as a part of torch's largest value."""
        return dict(self._forward.differences)

    def detach(self) -> None:
        """Let torch compute the U-Net again, bit for bit as before."""
        if vars(self._unet).get("forward") is self._forward:
            del vars(self._unet)["forward"]


class OpenVinoForward:
    """The forward pass that takes the place of a U-Net's own.

    Args:
        unet: the U-Net
        dtype: "float32" or "bfloat16"

    Attributes:
        differences: see `Acceleration`
    """

    def __init__(self, unet: UNet2DConditionModel, dtype: str) -> None:
        self.unet, self.dtype = unet, dtype
        self.differences: dict[CallSize, float] = {}
        self.__signature__ = inspect.signature(type(unet).forward.__get__(unet))
        self._graph = convert_unet(unet)
        self._reader, self._snapshot = CallReader(unet), UNetSnapshot(unet)
        self._compiled: dict[CallSize, CompiledGraph | str] = {}
        weights = sum(parameter.numel() * 4 for parameter in unet.parameters())
        self._most_graphs = max(1, MAX_GRAPH_BYTES // weights)
        self._reasons: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle torch's forward pass instead: a copy of the U-Net is not accelerated."""
        return functools.partial, (type(self.unet).forward, self.unet)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the U-Net by OpenVINO, or by torch with a warning that says why."""
        arguments: Mapping[str, Any] = self.__signature__.bind(*args, **kwargs).arguments
        reason = self._snapshot.find_change() or self._reader.find_obstacle(arguments)
        if reason is not None:
            return self._compute_by_torch(reason, arguments)
        with self._lock:
            call = self._reader.read(arguments)
            graph = self._find_graph(call.size)
            if isinstance(graph, CompiledGraph):
                output = graph(call).to(arguments["sample"].dtype)
                graph = self._find_fault(output, call.size, arguments) or output
        if isinstance(graph, str):
            return self._compute_by_torch(graph, arguments)
        return UNet2DConditionOutput(graph) if arguments.get("return_dict", True) else (graph,)

    def _compute_by_torch(self, reason: str, arguments: Mapping[str, Any]) -> Any:
        if reason not in self._reasons:
            self._reasons.add(reason)
            warnings.warn(f"torch computes the U-Net, not OpenVINO: {reason}", stacklevel=4)
        return type(self.unet).forward(self.unet, **arguments)

    def _find_graph(self, size: CallSize) -> "CompiledGraph | str":
        """Return the graph that is compiled for calls of a size, or the reason why there is none."""
        graph = self._compiled.pop(size, None) or self._compile(size)
        self._compiled[size] = graph
        while len(self._compiled) > self._most_graphs:
            del self._compiled[next(iter(self._compiled))]
        return graph

    def _compile(self, size: CallSize) -> "CompiledGraph | str":
        options = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        if failure := self._graph.try_compilation(size, self.dtype, options):
            return failure
        return CompiledGraph(self._graph, size, options)

    def _find_fault(self, output: Tensor, size: CallSize, arguments: Mapping[str, Any]) -> str | None:
        """Compare the first output of a size with torch's; the graph is not used again if it is too far.

        Returns:
            how far it is, a clause; None if it is near enough
        """
        if size in self.differences:
            return None
        difference = self._graph.find_trial(size, self.dtype).get("difference")
        if difference is None:
            expected = type(self.unet).forward(self.unet, **{**arguments, "return_dict": False})[0]
            difference = measure_difference(output, expected)
            self._graph.write_trial(size, self.dtype, difference=difference)
        self.differences[size] = difference
        # A U-Net whose weights are in half precision rounds as much as bfloat16 does.
        limit = LIMITS[self.dtype if output.dtype == torch.float32 else "bfloat16"]
        if difference <= limit:
            return None
        self._compiled[size] = fault = (
            f"its output differs from torch's by {difference:.1e} of the largest value; the limit in "
            f"{self.dtype} is {limit:.0e}"
        )
        return fault


class CompiledGraph:
    """A graph that is compiled for calls of one size; it is not called by two threads at once.

    Args:
        graph: the converted graph
        size: the size
        options: OpenVINO's settings
    """

    def __init__(self, graph: ConvertedGraph, size: CallSize, options: Mapping[str, Any]) -> None:
        import openvino

        shapes = {name: list(shape) for name, shape in graph.shapes(size).items()}
        compiled = compile_graph(openvino.Core(), str(graph.model), shapes, dict(options))
        self._request = compiled.create_infer_request()
        self._bound: dict[str, np.ndarray] = {}

    def __call__(self, call: GraphCall) -> Tensor:
        """Return the output, "batch channels height width"."""
        self._bind(call.lasting)
        self._bind(call.changing)
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())

    def _bind(self, arrays: Arrays) -> None:
        """Give the graph the memory of arrays; those that it has already stay."""
        import openvino

        for name, array in arrays.items():
            if self._bound.get(name) is not array:
                self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
                self._bound[name] = array


def measure_difference(output: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a part of the largest expected value; infinite if it is no number."""
    difference = float((output.float() - expected.float()).abs().max() / expected.float().abs().max())
    return difference if difference == difference else float("inf")
