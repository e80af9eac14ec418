"""Loading adapters: from a file, from the hub, or by a short name."""

import difflib
import os
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.choices import NO_IMAGE
from imprompt.checkpoint.files import TensorFile, flatten_tensors, read_tensors
from imprompt.checkpoint.names import from_official
from imprompt.checkpoint.projections import Version, build_projection
from imprompt.checkpoint.published import (
    EMBEDDED,
    EMBEDDED_WEIGHTS,
    PUBLISHED,
    PublishedAdapter,
    describe_encoder,
)
from imprompt.checkpoint.recognize import (
    Description,
    RecognizedFile,
    read_head_dim,
    read_lora_shapes,
    recognize,
)
from imprompt.checkpoint.saving import check_sound
from imprompt.errors import AdapterMismatch, CheckpointError, UnknownModel
from imprompt.inputs.choices import Input
from imprompt.inputs.encoder import ImageEncoder, describe_unconditional, load_image_encoder
from imprompt.inputs.recognizer import CharacterEmbedder, CharacterRecognizer
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.hub import fetch_file

EncoderLike = ImageEncoder | PreTrainedModel | str | os.PathLike[str]

_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+):(.+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")


class _Source(NamedTuple):
    """The path of a file, and its entry in the table of published adapters if it has one."""

    path: Path
    published: PublishedAdapter | None


def load_adapter(
    source: str | os.PathLike[str],
    *,
    image_encoder: EncoderLike | None = "known",
    face_plus_version: Literal[1, 2] | None = None,
) -> ImagePromptAdapter:
    """Load an adapter of any published variant and layout.

    Weights keep the number format of the file. If it has several, all weights get the widest of them. float8
    becomes float16.

    Args:
        source: "mini" or "mini-plus" (the embedded ones), the short name of a published one (`imprompt
            variants` lists them), a file, or "owner/name:file/in/repo" on the hub
        image_encoder: a model, a folder, or a hub id "owner/name:subfolder"; None for an adapter that will
            only take encoded inputs. By default the encoder that the file names, the embedded one for the
            embedded adapters, or the one that published adapters of these widths need, from the hub; none for
            other widths
        face_plus_version: version 1 or 2 of a FaceID-Plus file that is not published and has no metadata: its
            tensors do not tell the version

    Raises:
        CheckpointError: the file is damaged, holds wrong tensors, is of an unsupported variant, or is of
            FaceID-Plus with an unknown version
        UnknownModel: there is no such adapter, or its image encoder cannot be loaded
        AdapterMismatch: the outputs of the image encoder do not fit the adapter
    """
    name = os.fspath(source)
    if name in EMBEDDED:
        adapter = load_embedded_adapter(name)
        _refuse_version(face_plus_version, name)
        known: EncoderLike | None = adapter.image_encoder
        phrase = "its own image encoder"
    else:
        adapter, description = _load_file(_locate(name), face_plus_version)
        known = _find_encoder(description) if image_encoder == "known" else None
        phrase = description.encoder or ""
    image_encoder = known if image_encoder == "known" else image_encoder
    adapter.image_encoder = (
        None if image_encoder is None else _load_fitting_encoder(image_encoder, adapter, name, phrase)
    )
    return adapter


def load_embedded_adapter(name: str = "mini", *, weights: Path = EMBEDDED_WEIGHTS) -> ImagePromptAdapter:
    """Load one of the embedded model's image-prompt adapters, with its image encoder.

    Args:
        name: "mini" maps the image embedding to four tokens, "mini-plus" the grid of features to sixteen
        weights: a folder written by `imprompt mini train`

    Raises:
        UnknownModel: the weights are missing, or there is no adapter of that name
    """
    if name not in EMBEDDED:
        raise UnknownModel(f"there is no embedded adapter {name!r}; they are: {', '.join(EMBEDDED)}")
    folder = find_embedded_part(weights / "adapter")
    encoder = load_image_encoder(find_embedded_part(weights / "image_encoder"))
    return load_adapter(folder / EMBEDDED[name].file, image_encoder=encoder).float()


def load_embedded_recognizer(weights: Path = EMBEDDED_WEIGHTS) -> CharacterEmbedder:
    """Load the face embedder of the embedded model's face adapters.

    Args:
        weights: a folder written by `imprompt mini train`

    Raises:
        UnknownModel: the weights are missing
    """
    encoder = load_image_encoder(find_embedded_part(weights / "image_encoder"))
    return CharacterEmbedder(CharacterRecognizer.load(find_embedded_part(weights / "recognizer")), encoder)


def find_embedded_part(folder: Path) -> Path:
    """Return the folder of one part of the embedded model.

    Raises:
        UnknownModel: the folder is missing
    """
    if not folder.is_dir():
        raise UnknownModel(
            f"the embedded model's {folder.name} is not in {folder.parent}: reinstall imprompt"
        )
    return folder


def _locate(source: str) -> _Source:
    if fault := find_name_fault(source):
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
    embedded = " or ".join(map(repr, EMBEDDED))
    raise UnknownModel(
        f"no adapter {source!r}{perhaps}: no such file, nor {embedded}, nor a file on the hub "
        "(owner/name:file)"
    )


def build_adapter(
    tensors: Mapping[str, object], *, name: str, face_plus_version: Literal[1, 2] | None = None
) -> ImagePromptAdapter:
    """Build an adapter from tensors, without an image encoder.

    Args:
        tensors: of any layout, under flat dotted names or in nested dictionaries, as `torch.load` returns
        name: what messages call them
        face_plus_version: as in `load_adapter`

    Raises:
        CheckpointError: there are other things than tensors, or wrong tensors, as in `load_adapter`
    """
    file = TensorFile(flatten_tensors(tensors, name), {}, "tensors")
    return _build_checked(file, _Source(Path(name), None), face_plus_version)[0]


def _load_file(source: _Source, requested: Version | None) -> tuple[ImagePromptAdapter, Description]:
    return _build_checked(read_tensors(source.path), source, requested)


def _build_checked(
    file: TensorFile, source: _Source, requested: Version | None
) -> tuple[ImagePromptAdapter, Description]:
    recognized = recognize(file)
    description = recognized.description
    check_sound(source.path, description)
    if limit := description.limit:
        raise CheckpointError(f"{source.path}: {limit}")
    version = _choose_version(source, description, requested)
    _check_unconditional(source.path, description)
    return _build_adapter(recognized, file.metadata, version), description


def _check_unconditional(path: Path, description: Description) -> None:
    """Refuse a file that was trained with another "no image", on which guidance would rely."""
    own = describe_unconditional(description.takes, NO_IMAGE[description.injection])
    if (stated := description.metadata.get("unconditional", own)) != own:
        raise CheckpointError(
            f"{path} was trained with another form of no image ({stated!r}) than imprompt uses ({own!r})"
        )


def _choose_version(source: _Source, description: Description, requested: Version | None) -> Version:
    """Return the version of a FaceID-Plus file; 1 for the other variants, which ignore it."""
    path, stated = source.path, description.metadata.get("face_plus_version")
    if description.variant != "faceid-plus":
        _refuse_version(requested, str(path))
        return 1
    if stated not in (None, "1", "2"):
        raise CheckpointError(f"{path}: its metadata state face_plus_version {stated!r}; it must be 1 or 2")
    known = source.published.face_plus_version if source.published else None
    known = known or (None if stated is None else 1 if stated == "1" else 2)
    if known and requested and known != requested:
        raise CheckpointError(f"{path} is FaceID-Plus version {known}, not {requested}")
    if version := requested or known:
        return version
    raise CheckpointError(
        f"{path} is FaceID-Plus of version 1 or 2 ({description.encoder}); its tensors do not tell which: "
        "pass face_plus_version=1, or 2 for a file that was published as PlusV2"
    )


def _refuse_version(requested: Version | None, name: str) -> None:
    if requested is not None:
        raise CheckpointError(f"{name} is no FaceID-Plus adapter, and only those have a face_plus_version")


def _build_adapter(
    recognized: RecognizedFile, metadata: Mapping[str, str], version: Version
) -> ImagePromptAdapter:
    assert recognized.kind is not None  # a file without problems has one
    tensors = _unify_formats(recognized.tensors)
    projection = build_projection(tensors, metadata, recognized.kind, version)
    with torch.device("meta"):
        adapter = ImagePromptAdapter(
            projection,
            recognized.description.layers,
            read_lora_shapes(tensors),
            injection=recognized.kind.injection,
            head_dim=read_head_dim(recognized, metadata),
        )
    adapter.load_state_dict(from_official(tensors), assign=True)
    return adapter


def _unify_formats(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Convert all tensors to one number format, the widest that occurs.

    Some published files hold a float32 projection and float16 layers, which cannot compute together. float8
    becomes float16, which holds each of its values, because nothing computes in float8.
    """
    tensors = {name: tensor.half() if tensor.itemsize == 1 else tensor for name, tensor in tensors.items()}
    formats = {tensor.dtype for tensor in tensors.values()}
    if len(formats) == 1:
        return tensors
    widest = reduce(torch.promote_types, formats)
    return {name: tensor.to(widest) for name, tensor in tensors.items()}


# The image encoder


def _find_encoder(description: Description) -> EncoderLike | None:
    """Return the encoder that the file names ("mini" or one on the hub), else that of published adapters.

    An adapter of face embeddings alone needs none.
    """
    if set(description.takes) == {"face_embedding"}:
        return None
    stated = description.metadata.get("image_encoder", "")
    if stated == "mini":
        return load_image_encoder(find_embedded_part(EMBEDDED_WEIGHTS / "image_encoder"))
    if _HUB_ID.fullmatch(stated):
        return stated
    sources = (describe_encoder(name, width).source for name, width in description.takes.items())
    return next((source for source in sources if source), None)


def _load_fitting_encoder(
    source: EncoderLike, adapter: ImagePromptAdapter, name: str, phrase: str
) -> ImageEncoder:
    if set(adapter.projection.takes) == {"face_embedding"}:
        raise AdapterMismatch(f"the adapter {name} takes an {phrase}; it uses no image encoder")
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    try:
        encoder = source if isinstance(source, ImageEncoder) else load_image_encoder(source)
    except UnknownModel as error:
        raise UnknownModel(f"the adapter {name} needs {phrase}; {error}") from error
    _check_widths(encoder, adapter, name, phrase)
    return encoder


def _check_widths(encoder: ImageEncoder, adapter: ImagePromptAdapter, name: str, phrase: str) -> None:
    widths: dict[Input, int] = {
        "image_embedding": encoder.embedding_dim,
        "image_features": encoder.feature_dim,
        "last_image_features": encoder.feature_dim,
    }
    for key, width in widths.items():
        if (expected := adapter.projection.takes.get(key, width)) != width:
            raise AdapterMismatch(
                f"the adapter {name} needs {phrase}; this image encoder's {key.replace('_', ' ')} is "
                f"{width} wide, not {expected}"
            )
