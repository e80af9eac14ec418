"""Adapter files: their metadata name the mechanism; a file without a name is decoupled."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imprompt.checkpoint import load_adapter
from imprompt.checkpoint.files import read_tensors
from imprompt.errors import AdapterMismatch, CheckpointError
from imprompt.projection import HiddenProjection, LinearProjection
from imprompt.training.mechanisms.base import Mechanism
from imprompt.training.mechanisms.concatenated import ConcatenatedMechanism
from imprompt.training.mechanisms.decoupled import DecoupledMechanism
from imprompt.training.mechanisms.prior_decoder import TIME_PREFIX, PriorDecoderMechanism, build_prior_decoder
from imprompt.training.mechanisms.projection import PREFIX
from imprompt.training.mechanisms.replaced import ReplacedMechanism
from imprompt.training.mechanisms.shuffled_control import ShuffledControlMechanism, build_controlnet
from imprompt.training.mechanisms.style_adapter import StyleAdapterMechanism, StyleProjection
from imprompt.training.mechanisms.two_stream import TwoStreamMechanism
from imprompt.training.mechanisms.unclip import TimeProjection, UnclipMechanism, time_embedding_width

MECHANISMS: Mapping[str, type[Mechanism]] = {
    kind.name: kind
    for kind in (
        DecoupledMechanism,
        ConcatenatedMechanism,
        ReplacedMechanism,
        UnclipMechanism,
        TwoStreamMechanism,
        StyleAdapterMechanism,
        ShuffledControlMechanism,
        PriorDecoderMechanism,
    )
}
"""Every mechanism by its name."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read an adapter file's metadata; "injection", the mechanism, is always among them.

    Raises:
        CheckpointError: no such file, or damaged
    """
    return {"injection": DecoupledMechanism.name, **read_tensors(Path(path)).metadata}


def load_mechanism(path: str | os.PathLike[str], pipe: Any) -> Mechanism:
    """Attach the mechanism in a file to a pipeline.

    Of a mechanism that trains the base, the file's U-Net goes into the pipeline's.

    Args:
        path: as `imprompt train` writes it, of any mechanism
        pipe: the pipeline of the base that it was trained on, or of a fine-tuned one

    Raises:
        CheckpointError: no such file, damaged, of an unknown mechanism, or not of this base
        AdapterMismatch: it is for another kind of base
    """
    path = Path(path)
    file = read_tensors(path)
    name = file.metadata.get("injection", DecoupledMechanism.name)
    if name not in MECHANISMS:
        raise CheckpointError(f"{path} is of a mechanism {name!r}; those known are: {', '.join(MECHANISMS)}")
    if name == DecoupledMechanism.name:
        return DecoupledMechanism(load_adapter(path, image_encoder=None).float().to(pipe.device), pipe)
    mechanism_class: Any = MECHANISMS[name]
    mechanism: Mechanism = mechanism_class(
        _load_modules(path, file.tensors, name, pipe).to(pipe.device), pipe
    )
    try:
        mechanism.restore(path)
    except CheckpointError:
        mechanism.detach()
        raise
    return mechanism


def _load_modules(path: Path, tensors: Mapping[str, Tensor], name: str, pipe: Any) -> nn.Module:
    """Return modules of the file's sizes, whose weights are still to be read."""
    if name == ShuffledControlMechanism.name:
        return build_controlnet(pipe)
    if name == PriorDecoderMechanism.name:
        tokens = _projection(path, tensors, name, pipe)
        time_weight = tensors.get(f"{TIME_PREFIX}proj.weight")
        if time_weight is None:
            raise CheckpointError(f"{path} says that it is {name}, but has no {TIME_PREFIX}: it is damaged")
        return build_prior_decoder(tokens, TimeProjection(time_weight.shape[1], time_weight.shape[0]), pipe)
    return _projection(path, tensors, name, pipe)


def _projection(path: Path, tensors: Mapping[str, Tensor], name: str, pipe: Any) -> nn.Module:
    """Return a projection as wide as the file's."""
    first = f"{PREFIX}proj.weight" if f"{PREFIX}proj.weight" in tensors else f"{PREFIX}proj.0.weight"
    if first not in tensors or tensors[first].ndim != 2:
        raise CheckpointError(f"{path} says that it is {name}, but has no {PREFIX}proj.weight: it is damaged")
    outputs, embedding_dim = tensors[first].shape
    if name == StyleAdapterMechanism.name:
        _check_width(path, "text embedding", outputs, int(pipe.unet.config.cross_attention_dim))
        return StyleProjection(embedding_dim, outputs)
    if name == UnclipMechanism.name:
        _check_width(path, "time embedding", outputs, time_embedding_width(pipe.unet))
        return TimeProjection(embedding_dim, outputs)
    last, norm = tensors.get(f"{PREFIX}proj.2.weight", tensors[first]), tensors.get(f"{PREFIX}norm.weight")
    if norm is None or norm.ndim != 1 or last.shape[0] % len(norm):
        raise CheckpointError(f"{path} says that it is {name}, but has no sound projection: it is damaged")
    context_dim, tokens = len(norm), last.shape[0] // len(norm)
    _check_width(path, "text embedding", context_dim, int(pipe.unet.config.cross_attention_dim))
    if first.endswith("proj.0.weight"):
        return HiddenProjection(embedding_dim, context_dim, tokens, hidden=outputs)
    return LinearProjection(embedding_dim, context_dim, tokens)


def _check_width(path: Path, what: str, given: int, wanted: int) -> None:
    if given != wanted:
        raise AdapterMismatch(
            f"{path} is for a base whose {what} is {given} wide; that of this base is {wanted} wide"
        )
