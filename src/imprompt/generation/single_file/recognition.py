"""What a file of tensors is: a base model to be loaded, or another kind of file, and where that belongs."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from imprompt.checkpoint.files import TensorFile, take_tensors
from imprompt.checkpoint.recognize import recognize
from imprompt.errors import CheckpointError
from imprompt.generation.single_file.bases import (
    V_PREDICTION_BIAS,
    BaseVariant,
    find_base,
    use_original_names,
)
from imprompt.generation.single_file.kinds import BASE_NEEDED, FileKind, find_kind, is_quantized
from imprompt.runtime.files import shorten

Role = Literal["base", "adapter", "other", "unknown"]

_ADAPTER_NAME = re.compile(r"image_proj|to_[kv]_ip|ip_adapter")
_ADAPTER = FileKind("an image-prompt adapter", "give it with --adapter, and the base with --base")


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """What a file of tensors is."""

    role: Role
    """A base that `load_pipeline` loads, an image-prompt adapter, another known kind, or none of them."""
    name: str
    """A noun phrase, such as "a LoRA" or "Stable Diffusion 1.5 (inpainting)"."""
    use: str
    """What to do with it, such as "give it with --lora, and the base with --base"."""
    base: BaseVariant | None = None
    """The base model in it; None in any other role."""
    parameters: int
    """Number of values in all its tensors."""
    metadata: dict[str, str]
    """Metadata of a safetensors file."""


def recognize_checkpoint(path: str | os.PathLike[str]) -> SingleFile:
    """Return what a file of tensors is, from the names, shapes and number formats of its tensors.

    Args:
        path: a safetensors file, or a torch pickle such as a `.ckpt`, of which nothing is run

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain values
    """
    return recognize_tensors(take_tensors(Path(path), _take_header))


def recognize_tensors(file: TensorFile) -> SingleFile:
    """Return what the file is that holds these tensors; see `find_base` for the one whose values count."""
    tensors = file.tensors
    facts: dict[str, Any] = {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "metadata": file.metadata,
    }
    if _is_adapter(file):
        return SingleFile(role="adapter", name=_ADAPTER.name, use=_ADAPTER.use, **facts)
    base = find_base(use_original_names(tensors))
    if isinstance(base, BaseVariant) and not is_quantized(tensors):
        return SingleFile(role="base", name=base.name, use="give it with --base", base=base, **facts)
    kind = base if isinstance(base, FileKind) else find_kind(tensors)
    name, use = kind or _describe_unknown(tensors)
    return SingleFile(role="other" if kind else "unknown", name=name, use=use, **facts)


def require_base(path: Path) -> BaseVariant:
    """Return the base model in a file.

    Raises:
        CheckpointError: the file is damaged, or another kind of file; the message says where it belongs
    """
    found = recognize_checkpoint(path)
    if found.base is None:
        raise CheckpointError(f"{path} is {found.name}, not a base model that imprompt can load: {found.use}")
    return found.base


def _take_header(name: str, tensor: Tensor) -> Tensor:
    return tensor.clone() if name == V_PREDICTION_BIAS else tensor.to("meta")


def _is_adapter(file: TensorFile) -> bool:
    has_name = any(_ADAPTER_NAME.search(name) for name in file.tensors)
    return has_name and recognize(file).description.variant is not None


def _describe_unknown(tensors: Mapping[str, Tensor]) -> FileKind:
    first = min(tensors, default=None)
    what = f"unknown tensors, the first of them {shorten(first)!r}" if first else "no tensors"
    return FileKind(f"a file with {what}", BASE_NEEDED)
