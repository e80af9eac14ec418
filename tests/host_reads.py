"""Finds where Python waits for a device, on the CPU too: reads of values, and copies to or from the host."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    *("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"),
    *("__contains__", "nonzero", "equal", "allclose", "is_nonzero", "unique", "masked_select", "new_tensor"),
}
"""Functions of tensors that wait for a GPU: they return values, or sizes that depend on values."""

OPERATORS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "_unique2"}


class HostReads:
    """Counts host reads inside the context, by name, in Python's calls and in those of operators.

    On the CPU `tolist` and `cpu` reach no operator, so Python's calls are watched as well.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> "HostReads":
        self.modes = _Functions(self.found), _Operators(self.found)
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(kind, error, trace)


class _Functions(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in OPERATORS or (name in ("_to_copy", "copy_") and _crosses(args, output)):
            self.found.append(f"aten::{name}")
        return output


def _crosses(args: Any, output: Any) -> bool:
    """Whether a copy is between the host and a device."""
    kinds = {x.device.type for x in (*args, output) if isinstance(x, torch.Tensor)}
    return len(kinds) > 1 and "cpu" in kinds


class Recording(TorchDispatchMode):
    """Records operators and their tensors, to repeat them: what a CUDA graph does, without its speed.

    A replay runs no Python of the model. It reads and writes the recorded tensors, so whatever was not copied
    to their addresses has its old value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat all operators, and copy their results to the addresses of the first ones."""
        for func, args, kwargs, output in self.calls:
            fresh = func(*args, **kwargs)
            for fixed, one in zip(_tensors(output), _tensors(fresh), strict=True):
                if fixed.data_ptr() != one.data_ptr():
                    fixed.copy_(one)


def _tensors(output: Any) -> list[torch.Tensor]:
    outputs = output if isinstance(output, list | tuple) else [output]
    return [one for one in outputs if isinstance(one, torch.Tensor)]


def capture_recording(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Stand for `capture_cuda_graph` on the CPU."""
    run()
    with Recording() as recording:
        outputs = run()
    return recording.replay, outputs
