"""Reading adapters: from a file, from the hub, under a short name."""

import difflib
import os
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint.files import read_tensors
from imprompt.checkpoint.names import from_official
from imprompt.checkpoint.projections import Version, build_projection
from imprompt.checkpoint.published import (
    EMBEDDED,
    EMBEDDED_WEIGHTS,
    PUBLISHED,
    PublishedAdapter,
    describe_encoder,
)
from imprompt.checkpoint.recognize import Description, RecognizedFile, read_lora_shapes, recognize
from imprompt.checkpoint.saving import check_sound
from imprompt.errors import AdapterMismatch, CheckpointError, UnknownModel
from imprompt.inputs.encoder import ImageEncoder, describe_unconditional, load_image_encoder
from imprompt.projection import Input
from imprompt.runtime.files import name_fault, shorten
from imprompt.runtime.hub import fetch_file

EncoderLike = ImageEncoder | CLIPVisionModelWithProjection | str | os.PathLike[str]

_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+):(.+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")


class _Source(NamedTuple):
    """Where a file is, and what is known of it if it is a published one."""

    path: Path
    published: PublishedAdapter | None


def load_adapter(
    source: str | os.PathLike[str],
    *,
    image_encoder: EncoderLike | None = "known",
    face_plus_version: Literal[1, 2] | None = None,
) -> ImagePromptAdapter:
    """Load an adapter of any published variant and layout.

    Weights keep the file's number format; those of a file with several become the widest of them, and float8
    becomes float16.

    Args:
        source: "mini" or "mini-plus" (the embedded ones), the short name of a published one (`imprompt
            variants` lists them), a file, or "owner/name:file/in/repo" on the hub
        image_encoder: a model, a folder, or a hub id "owner/name:subfolder"; None for an adapter that takes
            finished inputs only. By default the one that the file names, the mini's own for the mini, or for
            the widths of published adapters theirs, from the hub; none for other widths
        face_plus_version: of a FaceID-Plus file that is neither a published one nor one of ours: its tensors
            do not tell whether it is version 1 or 2

    Raises:
        CheckpointError: the file is damaged, holds wrong tensors, is a variant that cannot be used, or one of
            FaceID-Plus and nothing tells its version.
        UnknownModel: there is no such adapter, or its image encoder cannot be had.
        AdapterMismatch: the image encoder does not give what the adapter takes.
    """
    name = os.fspath(source)
    if name in EMBEDDED:
        adapter = load_embedded_adapter(name)
        _no_version(face_plus_version, name)
        known: EncoderLike | None = adapter.image_encoder
        phrase = "its own image encoder"
    else:
        adapter, description = _from_file(_local_file(name), face_plus_version)
        asked = image_encoder == "known"  # else it is not looked for: the mini's own file names the mini
        known = (
            (_said_encoder(description.metadata) or _find_published_encoder(description.takes))
            if asked
            else None
        )
        phrase = description.encoder or ""
    image_encoder = known if image_encoder == "known" else image_encoder
    adapter.image_encoder = (
        None if image_encoder is None else _fitting_encoder(image_encoder, adapter, name, phrase)
    )
    return adapter


def load_embedded_adapter(name: str = "mini", *, weights: Path = EMBEDDED_WEIGHTS) -> ImagePromptAdapter:
    """Load one of the embedded model's image-prompt adapters, with its image encoder.

    Args:
        name: "mini" makes four tokens of the image embedding, "mini-plus" sixteen of the grid of features
        weights: a folder as `imprompt mini train` makes it

    Raises:
        UnknownModel: the weights are not there, or there is no adapter of that name
    """
    if name not in EMBEDDED:
        raise UnknownModel(f"there is no embedded adapter {name!r}; they are: {', '.join(EMBEDDED)}")
    folder = find_embedded_part(weights / "adapter")
    encoder = load_image_encoder(find_embedded_part(weights / "image_encoder"))
    return load_adapter(folder / EMBEDDED[name].file, image_encoder=encoder).float()


def find_embedded_part(folder: Path) -> Path:
    """Return the folder of one part of the embedded model.

    Raises:
        UnknownModel: it is not there; the message says how to get it
    """
    if not folder.is_dir():
        raise UnknownModel(
            f"the embedded model's {folder.name} is not in {folder.parent}: reinstall imprompt"
        )
    return folder


def _local_file(source: str) -> _Source:
    if fault := name_fault(source):
        raise UnknownModel(f"no adapter {shorten(source)!r}: {fault}")
    by_name = {name.lower(): published for name, published in PUBLISHED.items()}
    path, published = Path(source), by_name.get(source.lower())
    if path.exists() or path.is_symlink():
        return _Source(path, None)
    if published:
        return _Source(fetch_file(published.repository, published.file), published)
    if match := _HUB_FILE.fullmatch(source):
        known = (one for one in PUBLISHED.values() if (one.repository, one.file) == match.groups())
        return _Source(fetch_file(match[1], match[2]), next(known, None))
    near = difflib.get_close_matches(source, [*EMBEDDED, *PUBLISHED], n=1)
    perhaps = f" (did you mean {near[0]!r}?)" if near else ""
    ours = " or ".join(map(repr, EMBEDDED))
    raise UnknownModel(
        f"no adapter {source!r}{perhaps}: no such file, nor {ours}, nor a file on the hub (owner/name:file)"
    )


def _from_file(source: _Source, asked: Version | None) -> tuple[ImagePromptAdapter, Description]:
    file = read_tensors(source.path)
    found = recognize(file)
    check_sound(source.path, found.description)
    if limit := found.description.limit:
        raise CheckpointError(f"{source.path}: {limit}")
    version = _version(source, found.description, asked)
    _check_unconditional(source.path, found.description)
    return _built(found, file.metadata, version), found.description


def _check_unconditional(path: Path, described: Description) -> None:
    """Refuse a file whose "no image" is another than ours: guidance would push from what it never saw."""
    ours = describe_unconditional(described.takes)
    if (said := described.metadata.get("unconditional", ours)) != ours:
        raise CheckpointError(
            f"{path} was trained with another form of no image ({said!r}) than imprompt uses ({ours!r})"
        )


def _version(source: _Source, described: Description, asked: Version | None) -> Version:
    """Decide which version of FaceID-Plus a file is; 1, which means nothing, for the other variants."""
    path, said = source.path, described.metadata.get("face_plus_version")
    if described.variant != "faceid-plus":
        _no_version(asked, str(path))
        return 1
    if said not in (None, "1", "2"):
        raise CheckpointError(f"{path}: its metadata says face_plus_version {said!r}; it must be 1 or 2")
    known = source.published.face_plus_version if source.published else None
    known = known or (None if said is None else 1 if said == "1" else 2)
    if known and asked and known != asked:
        raise CheckpointError(f"{path} is FaceID-Plus version {known}, not {asked}")
    if version := asked or known:
        return version
    raise CheckpointError(
        f"{path} is FaceID-Plus of version 1 or 2 ({described.encoder}); its tensors do not tell which: say "
        "face_plus_version=1, or 2 for a file that was published as PlusV2"
    )


def _no_version(asked: Version | None, name: str) -> None:
    if asked is not None:
        raise CheckpointError(f"{name} is no FaceID-Plus adapter: only those have a face_plus_version")


def _built(found: RecognizedFile, metadata: Mapping[str, str], version: Version) -> ImagePromptAdapter:
    assert found.kind is not None  # a sound file has one
    tensors = _of_one_format(found.tensors)
    projection = build_projection(tensors, metadata, found.kind, version)
    with torch.device("meta"):
        adapter = ImagePromptAdapter(projection, found.description.layers, read_lora_shapes(tensors))
    adapter.load_state_dict(from_official(tensors), assign=True)
    return adapter


def _of_one_format(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Some published files hold a float32 projection and float16 layers, which cannot compute together.

    float8 only stores: nothing is computed in it, so it becomes float16, which holds each of its values.
    """
    tensors = {name: tensor.half() if tensor.itemsize == 1 else tensor for name, tensor in tensors.items()}
    formats = {tensor.dtype for tensor in tensors.values()}
    if len(formats) == 1:
        return tensors
    widest = reduce(torch.promote_types, formats)
    return {name: tensor.to(widest) for name, tensor in tensors.items()}


# The image encoder


def _said_encoder(metadata: Mapping[str, str]) -> EncoderLike | None:
    """The encoder that the file itself names: "mini", or one on the hub."""
    said = metadata.get("image_encoder", "")
    if said == "mini":
        return load_image_encoder(find_embedded_part(EMBEDDED_WEIGHTS / "image_encoder"))
    return said if _HUB_ID.fullmatch(said) else None


def _find_published_encoder(takes: Mapping[Input, int]) -> str | None:
    """Hub id of the encoder that all published adapters of these widths need, if any takes a picture."""
    sources = (describe_encoder(name, width).source for name, width in takes.items())
    return next((source for source in sources if source), None)


def _fitting_encoder(
    source: EncoderLike, adapter: ImagePromptAdapter, name: str, phrase: str
) -> ImageEncoder:
    if set(adapter.projection.takes) == {"face_embedding"}:
        raise AdapterMismatch(f"the adapter {name} takes an {phrase}; it has no use for an image encoder")
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    try:
        encoder = source if isinstance(source, ImageEncoder) else load_image_encoder(source)
    except UnknownModel as error:
        raise UnknownModel(f"the adapter {name} needs {phrase}; {error}") from error
    _check_widths(encoder, adapter, name, phrase)
    return encoder


def _check_widths(encoder: ImageEncoder, adapter: ImagePromptAdapter, name: str, phrase: str) -> None:
    given: dict[Input, int] = {
        "image_embedding": encoder.embedding_dim,
        "image_features": encoder.feature_dim,
    }
    for key, width in given.items():
        if (wanted := adapter.projection.takes.get(key, width)) != width:
            raise AdapterMismatch(
                f"the adapter {name} needs {phrase}; this image encoder's {key.replace('_', ' ')} is "
                f"{width} wide, not {wanted}"
            )
