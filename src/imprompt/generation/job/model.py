"""`Job`: one generation, read from a TOML file or from a picture that imprompt made."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from imprompt.errors import ConfigError
from imprompt.generation.job.base_options import BaseOptions
from imprompt.generation.job.limits import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_PICTURES,
    MAX_REFERENCES,
    find_settings_fault,
    find_size_fault,
)
from imprompt.generation.job.located_files import locate_file
from imprompt.generation.job.pictures import read_hashes, read_settings, upgrade_settings
from imprompt.generation.job.reference import (
    Count,
    File,
    JobControl,
    JobReference,
    Move,
    Name,
    Number,
    Side,
    Span,
    Steps,
    Text,
    as_tuple,
)
from imprompt.generation.job.speeds import apply_speed
from imprompt.runtime.output import number_paths
from imprompt.runtime.settings import explain_fault, read_toml


class Job(BaseOptions):
    """One generation: the input of `imprompt generate`, which each picture stores.

    Every prompt gives `count` pictures, with the seeds from `seed` on; all references act on each.
    """

    prompt: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = ""
    negative_prompt: Text = ""
    references: Annotated[tuple[JobReference, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    base: Name | None = None
    """"mini", a folder in diffusers' format, a hub id, or a file of Stable Diffusion 1.5, 2.x or SDXL; by
    default the usual base for the adapter."""
    adapter: Name | None = None
    """"mini", "mini-plus", a short name (`imprompt variants`), a file, or owner/name:file on the hub; by
    default the usual adapter for the base. Without either it is "mini"."""
    image_encoder: Name | None = None
    """By default the one that is known for the adapter."""
    face_plus_version: Literal[1, 2] | None = None
    """The version of a FaceID-Plus adapter, which its file does not contain."""
    guidance_scale: Number = DEFAULT_GUIDANCE
    guidance_interval: Span = (0.0, 1.0)
    """[start, end]: the fraction of the steps with guidance; outside it there is none."""
    feature_cache: Annotated[int, Field(strict=True)] = 1
    """The U-Net's deep blocks are computed at every n-th step only; 1 means at every step."""
    cuda_graphs: Annotated[bool, Field(strict=True)] = False
    """Compute the U-Net by CUDA graphs, which gives the same pictures with less work for the processor."""
    true_guidance_scale: Number = 1.0
    """Of classifier-free guidance on FLUX.1, with the negative prompt; 1 turns it off."""
    steps: Steps = DEFAULT_STEPS
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    count: Count = 1
    width: Side | None = None
    height: Side | None = None
    """In pixels; by default the base's own, in the proportions of `init_image`. `size` sets both."""
    init_image: File | None = None
    """The picture to start from."""
    strength: Annotated[Number, Field(gt=0, le=1)] | None = None
    """How much of `init_image` is repainted: by default 0.8, or 1 with `inpaint`."""
    inpaint: File | None = None
    """A mask over `init_image`: white is repainted, black stays."""
    controls: Annotated[tuple[JobControl, ...], BeforeValidator(as_tuple)] = ()
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

    @model_validator(mode="before")
    @classmethod
    def _apply_speed(cls, values: Any) -> Any:
        """Fill in what `speed` stands for; a job has the settings, not the word."""
        return apply_speed(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check(self) -> "Job":
        if fault := find_settings_fault(self):
            raise ValueError(fault)
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height belong together; give both, or size")
        if len(self.prompts) * self.count > MAX_PICTURES:
            raise ValueError(
                f"{len(self.prompts):,} prompts with count {self.count:,} are too many pictures for one job; "
                f"it may make {MAX_PICTURES:,}"
            )
        if len(self.references) > MAX_REFERENCES:
            raise ValueError(
                f"{len(self.references):,} references are too many for one job; it may have {MAX_REFERENCES}"
            )
        if fault := find_size_fault(self.size):
            raise ValueError(fault)
        return self

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "Job":
        """Read a job from a TOML file; its paths are relative to the file.

        Raises:
            ConfigError: the file does not exist or is no TOML, a key is unknown (and the nearest known one),
                a value is out of range, or settings exclude each other
        """
        path = Path(path)
        values = read_toml(path, kind="file")
        return parse_job(values, f"{path}: ", lambda file: str(Path(path.parent, file)))

    @classmethod
    def from_image(cls, picture: str | os.PathLike[str]) -> "Job":
        """Return the job that made a picture of imprompt, to be changed and run again.

        Files are looked for in the picture's folder, in the working directory, and where they were when this
        machine made the picture; whether they exist is not checked.

        Raises:
            ImageError: the picture does not exist, or contains no settings of imprompt
            ConfigError: settings that this version does not know
        """
        path = Path(picture)
        settings = read_settings(path)
        hashes = read_hashes(settings)

        def find(file: str) -> str:
            return locate_file(path, file, hashes.get(file))

        return parse_job(upgrade_settings(settings), f"{path}: ", find)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height; None: the base's own."""
        return None if self.width is None or self.height is None else (self.width, self.height)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, of which there is at least one."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def seeds(self) -> range:
        """The seed of each picture of a prompt."""
        return range(self.seed, self.seed + self.count)

    @property
    def outputs(self) -> list[Path]:
        """The paths of the pictures: `output`, or out-0.png and so on for several."""
        return number_paths(Path(self.output), len(self.prompts) * self.count)

    @property
    def files(self) -> list[str]:
        """All files of pictures and embeddings that the job reads."""
        files = [self.init_image, self.inpaint, *(control.image for control in self.controls)]
        for reference in self.references:
            files += [*reference.images, *(reference.negative or ()), reference.mask, reference.face]
        return [file for file in files if file is not None]

    @property
    def by_adapter(self) -> dict[str, list[JobReference]]:
        """The references of each adapter, in the order in which adapters first appear.

        Raises:
            ConfigError: a reference has no adapter; `imprompt.generation.pairing` chooses it
        """
        groups: dict[str, list[JobReference]] = {}
        for reference in self.references:
            name = reference.adapter or self.adapter
            if name is None:
                raise ConfigError("this job has no adapter yet: call pair_models first, or give one")
            groups.setdefault(name, []).append(reference)
        return groups


def parse_job(values: Mapping[str, Any], source: str = "", move: Move | None = None) -> Job:
    """Check settings; the first fault becomes one sentence.

    Args:
        values: the settings as in a TOML file
        source: the beginning of the message
        move: translates every path; by default paths stay as they are

    Raises:
        ConfigError: see `Job.from_toml`
    """
    try:
        return Job.model_validate(values, context={} if move is None else {"move": move})
    except ValidationError as error:
        raise ConfigError(f"{source}{explain_fault(error, Job, extra_keys=['size', 'speed'])}") from error
