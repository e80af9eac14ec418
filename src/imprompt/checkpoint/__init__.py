"""Adapter files: recognise, load, validate, save.

The published ("official") layout has two groups of tensors: `image_proj.*`, the projection, and
`ip_adapter.N.to_k_ip.weight`, `ip_adapter.N.to_v_ip.weight`, a pair for each cross-attention layer, where N
is the layer's position among all attention processors of the base. A `.safetensors` file holds them flat, a
`.bin` file is a torch pickle of {"image_proj": {...}, "ip_adapter": {...}}. What a file is, its tensors
say, never its name.
"""

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from imprompt.adapter import ImagePromptAdapter
from imprompt.checkpoint.files import TensorFile, read_tensors, write_tensors
from imprompt.checkpoint.recognise import Description, describe, describe_tensors
from imprompt.encoder import ImageEncoder, load_image_encoder
from imprompt.errors import AdapterMismatch, CheckpointError, UnknownModel
from imprompt.output import check_output
from imprompt.projection import LinearProjection

__all__ = [
    "Description",
    "convert_adapter",
    "describe",
    "from_official",
    "load_adapter",
    "save_adapter",
    "to_official",
]

_EMBEDDED = {"mini": ("imprompt.mini", "adapter")}
"""Adapters that imprompt brings itself: name → (module, function), imported only when asked for."""

_KNOWN_ENCODERS = {
    1024: "h94/IP-Adapter:models/image_encoder",
    1280: "h94/IP-Adapter:sdxl_models/image_encoder",
}
"""Width of the image embedding → the encoder of all published base adapters of that width."""

EncoderLike = ImageEncoder | CLIPVisionModelWithProjection | str | os.PathLike[str]

_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+):(.+)")

_N = "(0|[1-9][0-9]*)"
_OFFICIAL_TO_OURS = (
    (r"image_proj\.(.+)", r"projection.\1"),
    (rf"ip_adapter\.{_N}\.to_k_ip\.weight", r"layers.\1.to_key.weight"),
    (rf"ip_adapter\.{_N}\.to_v_ip\.weight", r"layers.\1.to_value.weight"),
)
_OURS_TO_OFFICIAL = (
    (r"projection\.(.+)", r"image_proj.\1"),
    (rf"layers\.{_N}\.to_key\.weight", r"ip_adapter.\1.to_k_ip.weight"),
    (rf"layers\.{_N}\.to_value\.weight", r"ip_adapter.\1.to_v_ip.weight"),
)


def load_adapter(
    source: str | os.PathLike[str],
    *,
    image_encoder: EncoderLike | None = "known",
) -> ImagePromptAdapter:
    """Load an adapter: "mini" (the embedded one), a file, or "owner/name:file/in/repo" on the hub.

    Weights keep the file's number format.

    Args:
        source: see above image_encoder: a model, a folder, or a hub id "owner/name:subfolder"; None for an
        adapter that takes finished
            image embeddings only. By default the one that the adapter is known to belong to: the mini's
            own, or for the widths of published adapters theirs, from the hub; none for other widths

    Raises:
        CheckpointError: the file is damaged, holds wrong tensors, or is a variant that cannot be used yet.
        UnknownModel: there is no such adapter.
        AdapterMismatch: the image encoder's embedding is not as wide as the adapter needs.
    """
    name = os.fspath(source)
    adapter = _embedded(name) if name in _EMBEDDED else _from_file(_local_file(name))
    if image_encoder == "known":
        image_encoder = adapter.image_encoder or _KNOWN_ENCODERS.get(
            adapter.projection.takes["image_embedding"]
        )
    adapter.image_encoder = None if image_encoder is None else _fitting_encoder(image_encoder, adapter, name)
    return adapter


def save_adapter(
    adapter: ImagePromptAdapter, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write an adapter in the official layout, as `.safetensors` or `.bin`; number formats are kept.

    The safetensors file says what it is in its metadata (variant, tokens, widths); `metadata` adds to that,
    e.g. `encoder`, which names the image encoder it was trained with. The file appears whole or not at all.

    Raises:
        CheckpointError: metadata for a `.bin` file, which has no place for it, or of a key that we write.
        OutputError: another suffix, a missing folder, a full disk.
    """
    path, tensors = Path(path), to_official(adapter.state_dict())
    described = describe_tensors(TensorFile(tensors, {}, "safetensors"))
    facts = {
        key: str(getattr(described, key)) for key in ("variant", "tokens", "embedding_dim", "context_dim")
    }
    if metadata and path.suffix == ".bin":
        raise CheckpointError(f"{path}: a .bin file has no place for metadata; save as .safetensors")
    if taken := sorted({*facts, "format"} & set(metadata or {})):
        raise CheckpointError(f"{path}: the metadata key {taken[0]!r} is written by imprompt itself")
    write_tensors(tensors, path, {**facts, **(metadata or {})})


def convert_adapter(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """Write a sound adapter file of any recognised variant anew, in the layout of the destination's suffix.

    Number formats are kept; metadata too, but for a `.bin` file, which has no place for it.

    Raises:
        CheckpointError: the source is damaged or no adapter, or holds wrong tensors
        OutputError: another suffix than .safetensors or .bin, a missing folder, a full disk
    """
    check_output(Path(destination), ".safetensors", ".bin")
    file = read_tensors(Path(source))
    _check_sound(Path(source), describe_tensors(file))
    write_tensors(file.tensors, Path(destination), file.metadata)


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an adapter's state dict to the official ones; undoes `from_official`."""
    return {_renamed(name, _OURS_TO_OFFICIAL): tensor for name, tensor in tensors.items()}


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official tensors to those of an adapter's state dict; undoes `to_official`."""
    return {_renamed(name, _OFFICIAL_TO_OURS): tensor for name, tensor in tensors.items()}


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    raise CheckpointError(f"{name} is no tensor of an adapter that we know")


def _embedded(name: str) -> ImagePromptAdapter:
    module, function = _EMBEDDED[name]
    return getattr(importlib.import_module(module), function)()


def _local_file(source: str) -> Path:
    path = Path(source)
    if path.exists() or path.is_symlink():
        return path
    if match := _HUB_FILE.fullmatch(source):
        return _from_hub(match[1], match[2])
    raise UnknownModel(
        f"no adapter {source!r}: no such file, nor 'mini', nor a file on the hub (owner/name:file)"
    )


def _from_hub(repository: str, file: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except (OSError, ValueError) as error:  # all of the hub's errors, offline ones too, are one of these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownModel(f"{repository}:{file} is not here and cannot be fetched: {reason}") from error


def _from_file(path: Path) -> ImagePromptAdapter:
    file = read_tensors(path)
    described = describe_tensors(file)
    _check_sound(path, described)
    if described.limit:
        raise CheckpointError(f"{path}: {described.limit}")
    return _built(file.tensors, described)


def _check_sound(path: Path, described: Description) -> None:
    if described.problems:
        more = len(described.problems) - 1
        rest = f" (and {more} more: imprompt inspect {path})" if more else ""
        raise CheckpointError(f"{path}: {described.problems[0]}{rest}")


def _built(tensors: Mapping[str, Tensor], described: Description) -> ImagePromptAdapter:
    widths = described.embedding_dim, described.context_dim, described.tokens
    embedding_dim, context_dim, tokens = (
        width for width in widths if width is not None
    )  # a sound file has all
    with torch.device("meta"):
        adapter = ImagePromptAdapter(LinearProjection(embedding_dim, context_dim, tokens), described.layers)
    adapter.load_state_dict(from_official(tensors), assign=True)
    return adapter


def _fitting_encoder(source: EncoderLike, adapter: ImagePromptAdapter, name: str) -> ImageEncoder:
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    encoder = source if isinstance(source, ImageEncoder) else load_image_encoder(source)
    wanted = adapter.projection.takes["image_embedding"]
    if encoder.embedding_dim != wanted:
        raise AdapterMismatch(
            f"the adapter {name} needs image embeddings {wanted} wide; "
            f"those of this image encoder are {encoder.embedding_dim} wide"
        )
    return encoder
