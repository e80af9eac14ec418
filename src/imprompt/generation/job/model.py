"""What a job may hold: `Job` and its parts, typed and closed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from imprompt.attention.layer_weights import Convention
from imprompt.checkpoint import EMBEDDED
from imprompt.errors import InvalidReference
from imprompt.generation.job.limits import (
    MAX_MADE_PIXELS,
    MAX_PICTURES,
    MAX_REFERENCES,
    MAX_SIDE,
    MAX_STEPS,
    text_fault,
)
from imprompt.inputs.crop import CropName, Noise
from imprompt.inputs.embeddings import Combine, load_embeddings
from imprompt.inputs.image import load_image
from imprompt.reference import MAX_IMAGES, Axis, Reference, Scaling
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.settings import normalize_spelling

DEFAULT_STEPS = 25
"""Enough for DDIM and its kin on every base we know; diffusers' own default is 50."""

EMBEDDINGS_SUFFIX = ".safetensors"
"""What the name of an embedding file ends in; anything else is a picture."""

Move = Callable[[str], str]
"""What becomes of a path on its way from a file or into one; given as the context {"move": ...}."""


def _read_path(path: str, info: Any) -> str:
    if fault := find_name_fault(path):
        raise ValueError(f"{shorten(path)!r} cannot be used: {fault}")
    move: Move | None = (info.context or {}).get("move")
    return move(path) if move else path


def _read_name(name: str, info: Any) -> str:
    """A name that may be a path, if there is something at that path."""
    path = _read_path(name, info)
    return path if not _is_embedded(name) and Path(path).exists() else name


def _written_path(path: str, info: Any) -> str:
    move: Move | None = (info.context or {}).get("move")
    return move(path) if move else path


def _written_name(name: str, info: Any) -> str:
    return _written_path(name, info) if not _is_embedded(name) and Path(name).exists() else name


def _is_embedded(name: str) -> bool:
    return name.partition(":")[0] in EMBEDDED


def _several(value: object) -> object:
    return (value,) if isinstance(value, str | Mapping) else value


def _check_text(text: str) -> str:
    if fault := text_fault(text):
        raise ValueError(fault)
    return text


def _check_images(images: tuple[str, ...]) -> tuple[str, ...]:
    if len(images) > MAX_IMAGES:
        raise ValueError(
            f"{len(images):,} pictures are too many for one reference; it may have {MAX_IMAGES:,}"
        )
    return images


Text = Annotated[str, AfterValidator(_check_text)]
"""Of at most `MAX_PROMPT_CHARACTERS`, each of them a character."""
File = Annotated[str, Field(min_length=1), AfterValidator(_read_path), PlainSerializer(_written_path)]
"""A path; in a file, relative to that file."""
Name = Annotated[str, Field(min_length=1), AfterValidator(_read_name), PlainSerializer(_written_name)]
"""A short name, a path, or a hub id."""
Files = Annotated[
    tuple[File, ...], BeforeValidator(_several), Field(min_length=1), AfterValidator(_check_images)
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_PICTURES)]
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Span = tuple[Share, Share]


class Closed(BaseModel):
    """A frozen group of settings that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobReference(Closed):
    """One image prompt of a job; see `imprompt.Reference` for what each setting does."""

    images: Files
    """Pictures, or one embedding file (.safetensors); one path or a list."""
    adapter: Name | None = None
    """The adapter that reads it; the job's if left out."""
    scale: Number = 1.0
    layers: str | dict[str, Number] = "full"
    """A mode, or factors on λ by block name or transformer number."""
    convention: Convention = "comfy"
    boost: Number | None = None
    steps: Span = (0.0, 1.0)
    """[start, end]: when it acts."""
    step_weights: tuple[Number, ...] | None = None
    """A multiplier for every step, in place of `steps`."""
    measured_in: Axis = "steps"
    mask: File | None = None
    crop: Annotated[CropName | Span, BeforeValidator(normalize_spelling)] = "center"
    negative: Files | None = None
    noise: tuple[Noise, Share] | None = None
    """[kind, amount]: "fade", "dissolve", "gaussian" or "shuffle"."""
    combine: Annotated[Combine, BeforeValidator(normalize_spelling)] = "concat"
    weights: tuple[Number, ...] | None = None
    without: Text = ""
    scaling: Scaling = "value"
    width_penalty: Annotated[bool, Field(strict=True)] = False
    face: File | None = None
    """An embedding file with face embeddings."""
    face_scale: Number = 1.0
    lora_scale: Number = 1.0

    @model_validator(mode="before")
    @classmethod
    def _only_images(cls, values: Any) -> Any:
        return {"images": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _check(self) -> "JobReference":
        if self.step_weights is not None and (self.steps != (0, 1) or self.measured_in != "steps"):
            raise ValueError("step_weights stands in place of steps and measured_in; leave those out")
        if self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps must begin before they end, not {list(self.steps)}")
        return self

    @property
    def is_embeddings(self) -> bool:
        """Whether it is an embedding file, not pictures."""
        return any(file.endswith(EMBEDDINGS_SUFFIX) for file in self.images)

    def reference(self) -> Reference:
        """Read the files and return the image prompt.

        Raises:
            ImageError, CheckpointError: a file that cannot be read
            InvalidReference: settings that do not go together
        """
        default = {name: field.default for name, field in type(self).model_fields.items()}
        asked = {name: value for name, value in self if name != "images" and value != default[name]}
        asked.pop("adapter", None)
        if self.step_weights is not None:
            asked["steps"] = list(asked.pop("step_weights"))
        if self.negative is not None:
            asked["negative"] = _prompt(self.negative)
        if self.face is not None:
            asked["face"] = _face(self.face)
        return Reference(_prompt(self.images), **asked)


class JobControl(Closed):
    """A ControlNet and the picture that it follows."""

    image: File
    model: Name = "mini"
    """"mini", which follows the edges of any picture on the embedded base; or a folder in diffusers' format
    or a hub id, for which the picture must be a control picture already."""
    scale: Number = 1.0


class Job(Closed):
    """One generation: what `imprompt generate` does, and what a picture remembers of it.

    Every prompt gives `count` pictures, with the seeds from `seed` on; all references act on each.
    """

    prompt: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = ""
    negative_prompt: Text = ""
    references: Annotated[tuple[JobReference, ...], BeforeValidator(_several), Field(min_length=1)]
    base: Name = "mini"
    """"mini", a folder in diffusers' format, or a hub id."""
    adapter: Name = "mini"
    """"mini", "mini-plus", a short name (`imprompt variants`), a file, or owner/name:file on the hub."""
    image_encoder: Name | None = None
    """The one known for the adapter, if left out."""
    face_plus_version: Literal[1, 2] | None = None
    """Which FaceID-Plus the adapter is; its file cannot tell."""
    guidance_scale: Number = 7.5
    guidance_interval: Span = (0.0, 1.0)
    """[start, end]: the part of the steps with guidance; without it outside."""
    steps: Steps = DEFAULT_STEPS
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    count: Count = 1
    width: Side | None = None
    height: Side | None = None
    """In pixels; if left out, the base's own, in the proportions of `init_image`. `size` sets both."""
    init_image: File | None = None
    """The picture to start from."""
    strength: Annotated[Number, Field(gt=0, le=1)] | None = None
    """How much of `init_image` is painted over: 0.8 if left out, 1 with `inpaint`."""
    inpaint: File | None = None
    """A mask over `init_image`: white is repainted, black stays."""
    controls: Annotated[tuple[JobControl, ...], BeforeValidator(_several)] = ()
    output: File = "out.png"

    @model_validator(mode="before")
    @classmethod
    def _spread_size(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "size" not in values:
            return values
        if "width" in values or "height" in values:
            raise ValueError("size is width and height at once; give it or them")
        rest = {key: value for key, value in values.items() if key != "size"}
        return {**rest, "width": values["size"], "height": values["size"]}

    @model_validator(mode="after")
    def _check(self) -> "Job":
        for name in ("strength", "inpaint"):
            if getattr(self, name) is not None and self.init_image is None:
                raise ValueError(
                    f"{name} is about init_image, and there is none; give the picture to start from"
                )
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height belong together; give both, or size")
        start, end = self.guidance_interval
        if start >= end:
            raise ValueError(f"guidance_interval must begin before it ends, not [{start}, {end}]")
        if (start, end) != (0, 1) and self.guidance_scale <= 1:
            raise ValueError(f"guidance_interval needs a guidance_scale above 1, not {self.guidance_scale}")
        self._check_amounts()
        return self

    def _check_amounts(self) -> None:
        if len(self.prompts) * self.count > MAX_PICTURES:
            raise ValueError(
                f"{len(self.prompts):,} prompts with count {self.count:,} are too many pictures for one job; "
                f"it may make {MAX_PICTURES:,}"
            )
        if len(self.references) > MAX_REFERENCES:
            raise ValueError(
                f"{len(self.references):,} references are too many for one job; it may have {MAX_REFERENCES}"
            )
        if self.width and self.height and self.width * self.height > MAX_MADE_PIXELS:
            raise ValueError(
                f"a picture of {self.width} × {self.height} pixels is too large; it may have "
                f"{MAX_MADE_PIXELS:,} in all"
            )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt, or all of them."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def seeds(self) -> range:
        """The seed of each picture of a prompt."""
        return range(self.seed, self.seed + self.count)

    @property
    def outputs(self) -> list[Path]:
        """Where the pictures go: `output`; of several, out-0.png and so on."""
        output, number = Path(self.output), len(self.prompts) * self.count
        return [output] if number == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(number)]

    @property
    def files(self) -> list[str]:
        """All pictures and embeddings that it is made from."""
        files = [self.init_image, self.inpaint, *(control.image for control in self.controls)]
        for reference in self.references:
            files += [*reference.images, *(reference.negative or ()), reference.mask, reference.face]
        return [file for file in files if file is not None]

    @property
    def by_adapter(self) -> dict[str, list[JobReference]]:
        """The references of each adapter, in the order in which adapters first appear."""
        groups: dict[str, list[JobReference]] = {}
        for reference in self.references:
            groups.setdefault(reference.adapter or self.adapter, []).append(reference)
        return groups


def _prompt(files: Sequence[str]) -> Any:
    """Pictures, read; or the name of one embedding file."""
    embeddings = [file for file in files if file.endswith(EMBEDDINGS_SUFFIX)]
    if not embeddings:
        pictures = [load_image(file) for file in files]
        return pictures if len(pictures) > 1 else pictures[0]
    if len(files) > 1:
        raise InvalidReference(f"{embeddings[0]} holds embeddings; give it alone, as a reference of its own")
    return files[0]


def _face(file: str) -> Any:
    inputs = load_embeddings(file).inputs
    if "face_embedding" not in inputs:
        raise InvalidReference(f"{file} holds {', '.join(inputs)}, but no face_embedding")
    return inputs["face_embedding"]
