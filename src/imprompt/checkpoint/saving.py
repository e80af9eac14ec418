"""Saving adapter files, always in the official layout."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.choices import HEAD_DIMS, NO_IMAGE
from imprompt.checkpoint.files import TensorFile, read_tensors, write_tensors
from imprompt.checkpoint.names import to_official
from imprompt.checkpoint.recognize import Description, recognize
from imprompt.errors import CheckpointError
from imprompt.inputs.encoder import describe_unconditional
from imprompt.projection import FacePlusProjection, PatchProjection, PerceiverShape, TokenProjection
from imprompt.projection.perceiver import PerceiverAttention
from imprompt.runtime.output import check_output


def save_adapter(
    adapter: ImagePromptAdapter, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write an adapter in the official layout, as `.safetensors` or `.bin`; number formats are kept.

    The metadata of a safetensors file state the variant, the tokens, the widths, and what the tensors do not
    reveal. `metadata` adds to them, e.g. `encoder`, the name of the image encoder of the training. The file
    is written atomically.

    Raises:
        CheckpointError: `metadata` is given for a `.bin` file, which cannot store it, or has a key that
            imprompt writes; or the adapter could not be loaded from a `.bin` file without metadata
        OutputError: the suffix is another one, the folder is missing, or the disk is full
    """
    path, tensors = Path(path), to_official(adapter.state_dict())
    needed = dict(_metadata_needed_to_reload(adapter))
    description = recognize(TensorFile(tensors, needed, "safetensors")).description
    facts = _describe_metadata(description) | needed
    if metadata and path.suffix == ".bin":
        raise CheckpointError(f"{path}: a .bin file cannot store metadata; save as .safetensors")
    if path.suffix == ".bin":
        check_loadable_without_metadata(path, facts)
    if reserved := sorted({*facts, "format"} & set(metadata or {})):
        raise CheckpointError(f"{path}: the metadata key {reserved[0]!r} is written by imprompt itself")
    write_tensors(tensors, path, {**facts, **(metadata or {})})


def convert_adapter(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> str:
    """Convert an adapter file of any recognized variant and layout to the official layout.

    Number formats are kept. Metadata are kept too, except in a `.bin` file, which cannot store them.

    Returns:
        The repairs, as a sentence without its full stop

    Raises:
        CheckpointError: the source is damaged, is no adapter, or holds wrong tensors; or the destination is a
            `.bin` file, from which the adapter could not be loaded without metadata
        OutputError: the suffix is not .safetensors or .bin, the folder is missing, or the disk is full
    """
    source, destination = Path(source), Path(destination)
    check_output(destination, ".safetensors", ".bin")
    file = read_tensors(source)
    recognized = recognize(file)
    description = recognized.description
    check_sound(source, description)
    if destination.suffix == ".bin":
        check_loadable_without_metadata(destination, file.metadata)
    write_tensors(recognized.tensors, destination, file.metadata)
    if not description.repairs:
        return "nothing had to be repaired"
    return f"it was a {description.layout}: {', '.join(description.repairs)}"


def check_sound(source: Path | str, description: Description) -> None:
    """Refuse a file with problems.

    Raises:
        CheckpointError: the file has problems; the message states the first one and the number of others
    """
    if description.problems:
        more = len(description.problems) - 1
        rest = f" (and {more} more: imprompt inspect {source})" if more else ""
        raise CheckpointError(f"{source}: {description.problems[0]}{rest}")


def check_loadable_without_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse to write a file that could not be loaded without metadata.

    Raises:
        CheckpointError: the file needs metadata
    """
    if (head_dim := metadata.get("attention_head_dim")) is not None:
        raise CheckpointError(
            f"{path}: a .bin file cannot state that the base's heads are {head_dim} wide; save as "
            ".safetensors"
        )
    if (head_dim := metadata.get("head_dim", "64")) != "64":
        raise CheckpointError(
            f"{path}: a .bin file cannot state that heads are {head_dim} wide; save as .safetensors"
        )
    if metadata.get("variant") == "full-face" and metadata.get("tokens") != "257":
        raise CheckpointError(
            f"{path}: a .bin file cannot state that the adapter takes {metadata.get('tokens')} features; "
            "save as .safetensors"
        )


def _describe_metadata(description: Description) -> dict[str, str]:
    takes = ", ".join(f"{name} {width}" for name, width in description.takes.items())
    return {
        "variant": str(description.variant),
        "tokens": str(description.tokens),
        "takes": takes,
        "context_dim": str(description.context_dim),
        "unconditional": describe_unconditional(description.takes, NO_IMAGE[description.injection]),
    }


def _metadata_needed_to_reload(adapter: ImagePromptAdapter) -> Iterator[tuple[str, str]]:
    """Yield the metadata without which the adapter cannot be rebuilt from its tensors."""
    projection = adapter.projection
    if adapter.injection == "flux-instantx" and adapter.head_dim != HEAD_DIMS["flux-instantx"]:
        yield "attention_head_dim", str(adapter.head_dim)
    heads = {module.head_dim for module in projection.modules() if isinstance(module, PerceiverAttention)}
    if heads - {PerceiverShape.head_dim}:
        yield "head_dim", str(*heads)
    if isinstance(projection, FacePlusProjection):
        yield "face_plus_version", str(projection.version)
    if isinstance(projection, PatchProjection | TokenProjection):
        yield "tokens", str(projection.tokens)
