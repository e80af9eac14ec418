"""One call of a denoiser: its arguments by name."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from imprompt.attention.diffusers_internals import unwrap_compiled


def is_kind(denoiser: nn.Module, name: str) -> bool:
    """Whether a denoiser is of a class of diffusers, by its name: importing that class takes long."""
    return any(kind.__name__ == name for kind in type(denoiser).__mro__)


def name_denoiser(denoiser: nn.Module) -> str:
    """Return what messages call a denoiser: "U-Net" or "transformer"."""
    return "transformer" if "Transformer" in type(denoiser).__name__ else "U-Net"


class DenoiserCall(NamedTuple):
    """One call of a denoiser.

    Args:
        sample: the latents, a row for each sample of the batch
        timestep: the timestep of the call, in the scheduler's unit
        text: the states of the text encoder, a row for each of the batch (and frames)
        options: all arguments by name
        denoiser: what is called, not compiled
    """

    sample: Tensor
    timestep: Tensor | float | int
    text: Tensor
    options: Mapping[str, Any]
    denoiser: nn.Module

    @property
    def noun(self) -> str:
        """What messages call the denoiser."""
        return name_denoiser(self.denoiser)


def read_call(denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> DenoiserCall:
    """Read the arguments of a call. FLUX takes a thousandth of its scheduler's timestep.

    Args:
        denoiser: what is called, compiled or not
        args: the positional arguments
        kwargs: the others
    """
    module = unwrap_compiled(denoiser)
    kind = type(module)
    options = {**dict(zip(_list_parameters(kind), args, strict=False)), **kwargs}
    sample = options["sample"] if "sample" in options else options["hidden_states"]
    timestep = options["timestep"]
    if is_kind(module, "FluxTransformer2DModel"):
        timestep = 1000 * timestep
    return DenoiserCall(sample, timestep, options["encoder_hidden_states"], options, module)


@functools.cache
def _list_parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]
