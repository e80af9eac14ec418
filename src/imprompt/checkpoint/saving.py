"""Writing adapter files: always the official layout."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint.files import TensorFile, read_tensors, write_tensors
from imprompt.checkpoint.names import to_official
from imprompt.checkpoint.recognize import Description, recognize
from imprompt.errors import CheckpointError
from imprompt.inputs.encoder import describe_unconditional
from imprompt.projection import FacePlusProjection, ImageProjection, PatchProjection, PerceiverShape
from imprompt.projection.perceiver import PerceiverAttention
from imprompt.runtime.output import check_output


def save_adapter(
    adapter: ImagePromptAdapter, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write an adapter in the official layout, as `.safetensors` or `.bin`; number formats are kept.

    The safetensors file says what it is in its metadata (variant, tokens, widths, and what its tensors cannot
    tell); `metadata` adds to that, e.g. `encoder`, which names the image encoder it was trained with. The
    file appears whole or not at all.

    Raises:
        CheckpointError: metadata for a `.bin` file, which has no place for it, or of a key that we write; a
            `.bin` file of an adapter that could not be read again without metadata
        OutputError: another suffix, a missing folder, a full disk
    """
    path, tensors = Path(path), to_official(adapter.state_dict())
    needed = _metadata_needed_to_reload(adapter.projection)
    described = recognize(TensorFile(tensors, needed, "safetensors")).description
    facts = _facts(described) | needed
    if metadata and path.suffix == ".bin":
        raise CheckpointError(f"{path}: a .bin file has no place for metadata; save as .safetensors")
    if path.suffix == ".bin":
        check_loadable_without_metadata(path, facts)
    if taken := sorted({*facts, "format"} & set(metadata or {})):
        raise CheckpointError(f"{path}: the metadata key {taken[0]!r} is written by imprompt itself")
    write_tensors(tensors, path, {**facts, **(metadata or {})})


def convert_adapter(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> str:
    """Write a sound adapter file of any recognised variant and layout anew, in the official layout.

    Number formats are kept; metadata too, but for a `.bin` file, which has no place for it.

    Returns:
        What had to be repaired, as a sentence without its full stop

    Raises:
        CheckpointError: the source is damaged or no adapter, or holds wrong tensors; or it could not be read
            again without metadata, and the destination is a `.bin` file
        OutputError: another suffix than .safetensors or .bin, a missing folder, a full disk
    """
    source, destination = Path(source), Path(destination)
    check_output(destination, ".safetensors", ".bin")
    file = read_tensors(source)
    found = recognize(file)
    check_sound(source, found.description)
    if destination.suffix == ".bin":
        check_loadable_without_metadata(destination, file.metadata)
    write_tensors(found.tensors, destination, file.metadata)
    if not found.description.repairs:
        return "nothing had to be repaired"
    return f"it was a {found.description.layout}: {', '.join(found.description.repairs)}"


def check_sound(source: Path | str, described: Description) -> None:
    """Refuse a file with problems.

    Raises:
        CheckpointError: the first problem, and how many more there are
    """
    if described.problems:
        more = len(described.problems) - 1
        rest = f" (and {more} more: imprompt inspect {source})" if more else ""
        raise CheckpointError(f"{source}: {described.problems[0]}{rest}")


def check_loadable_without_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse to write a file that could not be read again.

    Raises:
        CheckpointError: see above
    """
    if (head_dim := metadata.get("head_dim", "64")) != "64":
        raise CheckpointError(
            f"{path}: a .bin file cannot say that heads are {head_dim} wide; save as .safetensors"
        )
    if metadata.get("variant") == "full-face" and metadata.get("tokens") != "257":
        raise CheckpointError(
            f"{path}: a .bin file cannot say that it takes {metadata.get('tokens')} features; "
            "save as .safetensors"
        )


def _facts(described: Description) -> dict[str, str]:
    takes = ", ".join(f"{name} {width}" for name, width in described.takes.items())
    return {
        "variant": str(described.variant),
        "tokens": str(described.tokens),
        "takes": takes,
        "context_dim": str(described.context_dim),
        "unconditional": describe_unconditional(described.takes),
    }


def _metadata_needed_to_reload(projection: ImageProjection) -> dict[str, str]:
    """What the tensors of a projection do not tell."""
    return dict(_each_untold(projection))


def _each_untold(projection: ImageProjection) -> Iterator[tuple[str, str]]:
    heads = {module.head_dim for module in projection.modules() if isinstance(module, PerceiverAttention)}
    if heads - {PerceiverShape.head_dim}:
        yield "head_dim", str(*heads)
    if isinstance(projection, FacePlusProjection):
        yield "face_plus_version", str(projection.version)
    if isinstance(projection, PatchProjection):
        yield "tokens", str(projection.tokens)
