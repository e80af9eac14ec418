"""The parts of a job: image prompts and ControlNets, with files in place of pictures."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from PIL import Image
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    model_validator,
)

from imprompt.attention.choices import Axis, Scaling
from imprompt.attention.layer_weights import Convention
from imprompt.checkpoint.published import EMBEDDED
from imprompt.errors import ImageError, InvalidReference
from imprompt.generation.job.limits import (
    MAX_PICTURE_BYTES,
    MAX_PICTURES,
    MAX_SIDE,
    MAX_STEPS,
    find_text_fault,
)
from imprompt.inputs.choices import MAX_IMAGES, Combine, CropName, Noise
from imprompt.inputs.image import decode_image, is_url, load_image
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.settings import ClosedSettings, normalize_spelling

if TYPE_CHECKING:
    from imprompt.reference import Reference

EMBEDDINGS_SUFFIX = ".safetensors"
"""The suffix of embedding files; any other file is a picture."""

STANDARD_INPUT = "-"
"""In place of a picture's path: the picture is read from standard input."""

Move = Callable[[str], str]
"""Translates a path that is read from a file or written into one; passed as the context {"move": ...}."""


def _read_file(path: str, info: Any) -> str:
    if is_url(path):
        raise ValueError(
            f"{shorten(path)} is a URL, and imprompt fetches none; download the file and give its path"
        )
    return _read_path(path, info)


def _read_path(path: str, info: Any) -> str:
    if fault := find_name_fault(path):
        raise ValueError(f"{shorten(path)!r} cannot be used: {fault}")
    return _move_path(path, info)


def _read_name(name: str, info: Any) -> str:
    """Return the path that a name stands for, if there is a file or folder; otherwise the name."""
    path = _read_path(name, info)
    return path if not _is_embedded(name) and Path(path).exists() else name


def _move_path(path: str, info: Any) -> str:
    move: Move | None = (info.context or {}).get("move")
    return move(path) if move and path != STANDARD_INPUT else path


def _write_name(name: str, info: Any) -> str:
    return _move_path(name, info) if not _is_embedded(name) and Path(name).exists() else name


def _is_embedded(name: str) -> bool:
    return name.partition(":")[0] in EMBEDDED


def as_tuple(value: object) -> object:
    """Return a file or a group alone as a tuple of one."""
    return (value,) if isinstance(value, str | Mapping) else value


def _check_text(text: str) -> str:
    if fault := find_text_fault(text):
        raise ValueError(fault)
    return text


def _check_images(images: tuple[str, ...]) -> tuple[str, ...]:
    if len(images) > MAX_IMAGES:
        raise ValueError(
            f"{len(images):,} pictures are too many for one reference; it may have {MAX_IMAGES:,}"
        )
    return images


Text = Annotated[str, AfterValidator(_check_text)]
"""A text of at most `MAX_PROMPT_CHARACTERS` that contains no half of a surrogate pair."""
File = Annotated[str, Field(min_length=1), AfterValidator(_read_file), PlainSerializer(_move_path)]
"""A path; in a file it is relative to that file."""
Name = Annotated[str, Field(min_length=1), AfterValidator(_read_name), PlainSerializer(_write_name)]
"""A short name, a path, or a hub id."""
Files = Annotated[
    tuple[File, ...], BeforeValidator(as_tuple), Field(min_length=1), AfterValidator(_check_images)
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_PICTURES)]
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Span = tuple[Share, Share]


Picture = TypeVar("Picture")
Pictures = TypeVar("Pictures")


class ReferenceSettings(ClosedSettings, Generic[Pictures, Picture]):
    """The settings of `imprompt.Reference`, for a job with files and for a server with ids of pictures."""

    images: Pictures
    adapter: str | None = None
    """The adapter that uses it; by default the job's."""
    scale: Number = 1.0
    layers: str | dict[str, Number] = "full"
    """A mode, or factors on λ by block name or transformer number."""
    convention: Convention = "comfy"
    boost: Number | None = None
    start: Share = 0.0
    end: Share = 1.0
    step_weights: tuple[Number, ...] | None = None
    measured_in: Axis = "steps"
    mask: Picture | None = None
    crop: Annotated[CropName | Span, BeforeValidator(normalize_spelling)] = "native"
    negative: Pictures | None = None
    noise: tuple[Noise, Share] | None = None
    """[kind, amount]: "fade", "dissolve", "gaussian" or "shuffle"."""
    combine: Annotated[Combine, BeforeValidator(normalize_spelling)] = "concat"
    weights: tuple[Number, ...] | None = None
    without: Text = ""
    scaling: Scaling = "value"
    width_penalty: Annotated[bool, Field(strict=True)] = False
    face_scale: Number = 1.0
    lora_scale: Number = 1.0

    @model_validator(mode="after")
    def _check(self) -> "ReferenceSettings[Any, Any]":
        span = self.start, self.end
        if self.step_weights is not None and (span != (0, 1) or self.measured_in != "steps"):
            raise ValueError("step_weights replaces start, end and measured_in; leave those out")
        if self.start >= self.end:
            raise ValueError(f"start must be less than end, not {self.start} and {self.end}")
        return self


class JobReference(ReferenceSettings[Files, File]):
    """One image prompt of a job: pictures, or one embedding file (.safetensors); one path or a list."""

    adapter: Name | None = None
    face: File | None = None
    """An embedding file with face embeddings."""

    @model_validator(mode="before")
    @classmethod
    def _read_short_forms(cls, values: Any) -> Any:
        """Accept a file alone, and the earlier `steps = [start, end]`."""
        if isinstance(values, str):
            return {"images": values}
        if not isinstance(values, Mapping) or "steps" not in values:
            return values
        steps = values["steps"]
        if not isinstance(steps, list | tuple) or len(steps) != 2 or {"start", "end"} & {*values}:
            raise ValueError(f"steps = {steps} is an earlier form of start and end; give those")
        rest = {key: value for key, value in values.items() if key != "steps"}
        return {**rest, "start": steps[0], "end": steps[1]}

    @property
    def is_embeddings(self) -> bool:
        """Whether it is an embedding file, not pictures."""
        return any(file.endswith(EMBEDDINGS_SUFFIX) for file in self.images)

    def load(self) -> "Reference":
        """Read the files and return the image prompt.

        Raises:
            ImageError, CheckpointError: a file that cannot be read
            InvalidReference: settings that do not go together
        """
        from imprompt.reference import Reference  # it imports torch, and a job alone is read quickly

        settings = {name: value for name, value in self if name not in ("images", "adapter")}
        if self.negative is not None:
            settings["negative"] = _load_images(self.negative)
        if self.face is not None:
            settings["face"] = _load_face(self.face)
        return Reference(_load_images(self.images), **settings)


class JobControl(ClosedSettings):
    """A ControlNet and the picture that it follows."""

    image: File
    model: Name = "mini"
    """"mini", which follows the edges of any picture on the embedded base; or a folder in diffusers' format
    or a hub id, for which the picture must be a control picture already."""
    scale: Number = 1.0


def _load_images(files: Sequence[str]) -> Any:
    """Read pictures, or return the name of an embedding file."""
    embeddings = [file for file in files if file.endswith(EMBEDDINGS_SUFFIX)]
    if not embeddings:
        pictures = [_load_image(file) for file in files]
        return pictures if len(pictures) > 1 else pictures[0]
    if len(files) > 1:
        raise InvalidReference(f"{embeddings[0]} holds embeddings; give it alone, as a separate reference")
    return files[0]


def _load_image(file: str) -> Image.Image:
    if file != STANDARD_INPUT:
        return load_image(file)
    return decode_image(_read_standard_input(), "standard input")


@functools.cache
def _read_standard_input() -> bytes:
    """Return all bytes of standard input, which can be read once only.

    Raises:
        ImageError: it is a terminal, or holds more bytes than a picture has
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ImageError(
            "'-' stands for standard input, and nothing is piped into it; give a file, or pipe one"
        )
    data = sys.stdin.buffer.read(MAX_PICTURE_BYTES + 1)
    if len(data) > MAX_PICTURE_BYTES:
        raise ImageError(
            f"standard input holds more than {MAX_PICTURE_BYTES:,} bytes, too many for a picture"
        )
    return data


def _load_face(file: str) -> Any:
    from imprompt.inputs.embeddings import load_embeddings

    inputs = load_embeddings(file).inputs
    if "face_embedding" not in inputs:
        raise InvalidReference(f"{file} holds {', '.join(inputs)}, but no face_embedding")
    return inputs["face_embedding"]
