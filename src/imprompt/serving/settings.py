"""The settings of a server, which a TOML file may hold: its models, its limits, and how it batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from imprompt.errors import ConfigError
from imprompt.generation.job.base_options import BaseOptions
from imprompt.generation.job.limits import DEFAULT_STEPS
from imprompt.generation.job.reference import Name, Number, Side
from imprompt.generation.job.speeds import FEW_STEP_SPEEDS, apply_speed
from imprompt.runtime.settings import ClosedSettings, explain_fault, read_toml

HARD_CODED_NAMES = (
    *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
    "chatgpt-image-latest",
)
"""Names of models that some clients of the OpenAI API send whatever the server has."""


class ServedModel(BaseOptions):
    """A base with its adapters, under the name by which clients ask for it."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.:/ -]+$")]
    base: Name
    """"mini", a folder in diffusers' format, a hub id, or a file, as `--base` of `imprompt generate`."""
    adapters: tuple[Name, ...] = ()
    """The adapters that clients may choose, as `--adapter`; the first one is the default."""
    image_encoder: Name | None = None
    """The image encoder of the adapters; by default the known one of each."""
    controls: tuple[Name, ...] = ()
    """The ControlNets that clients may choose, as `--control-model`."""
    steps: Annotated[int, Field(ge=1)] = DEFAULT_STEPS
    """The steps of a request that does not say how many."""
    guidance_scale: Number = 7.5
    """The guidance scale of a request that has none."""
    width: Side | None = None
    height: Side | None = None
    """The size of a request that has none; by default the base's own."""

    @model_validator(mode="before")
    @classmethod
    def _apply_speed(cls, values: Any) -> Any:
        """Fill in what the speed of a distilled base stands for, where nobody gave others."""
        if not isinstance(values, Mapping) or "speed" not in values:
            return values
        if values["speed"] not in FEW_STEP_SPEEDS:
            raise ValueError(
                f"speed of a served model must be {', '.join(FEW_STEP_SPEEDS)}, not {values['speed']!r}; "
                "requests choose among the others"
            )
        return apply_speed(values)

    @model_validator(mode="after")
    def _check(self) -> "ServedModel":
        if self.offload == "model":
            raise ValueError(
                "offload: a server keeps no model between pictures with 'model'; use 'group' or 'sequential'"
            )
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height belong together; give both, or neither")
        return self


class Limits(ClosedSettings):
    """What a request may ask for; it is checked before any work."""

    body_megabytes: Annotated[float, Field(gt=0)] = 64.0
    """The most bytes of a request in millions."""
    picture_megabytes: Annotated[float, Field(gt=0)] = 20.0
    """The most bytes of a picture that is sent, in millions."""
    picture_megapixels: Annotated[float, Field(gt=0)] = 24.0
    """The most pixels of a picture that is sent in millions; they are read from its header."""
    pictures: Annotated[int, Field(ge=1)] = 16
    """The most pictures that a request sends."""
    count: Annotated[int, Field(ge=1)] = 10
    """The most pictures that a request makes."""
    steps: Annotated[int, Field(ge=1)] = 200
    """The most steps of a picture."""
    side: Side = 2048
    """The most pixels of a side of a picture that is made."""
    queue_seconds: Annotated[float, Field(gt=0)] = 120.0
    """The most seconds of estimated work that may wait; beyond it requests are refused with Retry-After."""
    decode_seconds: Annotated[float, Field(gt=0)] = 10.0
    """The most seconds in which a picture that is sent must be decoded."""
    assets_megabytes: Annotated[float, Field(gt=0)] = 512.0
    """The most bytes, in millions, of all pictures that are kept; the least recently used leave first."""
    finished_jobs: Annotated[int, Field(ge=1)] = 200
    """How many finished jobs are kept, with their pictures."""


class Batching(ClosedSettings):
    """How generations share U-Net calls."""

    pictures: Annotated[int, Field(ge=1, le=256)] = 8
    """The most pictures that are computed at once."""
    deterministic: bool = False
    """Always use the largest bucket: the same seed gives the same bytes, however many run at once."""

    @property
    def fixed_rows(self) -> int | None:
        """The rows of every U-Net call, or None for the smallest bucket."""
        return 2 * self.pictures if self.deterministic else None


class Replicas(ClosedSettings):
    """How many engines a Ray cluster runs, and what each of them gets."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """The engines; with `max_replicas`, the fewest of them."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """The most engines: Ray starts and stops them with the load. By default their number is fixed."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """The GPUs of each engine; 1, or a part of one."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """The cores of each engine."""

    @model_validator(mode="after")
    def _check(self) -> "Replicas":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is less than replicas, which is {self.replicas}")
        return self

    @property
    def most(self) -> int:
        """The most engines at any time."""
        return self.max_replicas or self.replicas


class ServerSettings(ClosedSettings):
    """Everything about a server except where it listens and its keys."""

    models: tuple[ServedModel, ...] = ()
    """The models; by default the embedded one."""
    aliases: Mapping[str, str] = Field(default_factory=dict)
    """Other names for models. Names that clients have hard-coded mean the first model."""
    loaded_models: Annotated[int, Field(ge=1)] = 2
    """How many bases are kept in memory; the least recently used leaves."""
    limits: Limits = Limits()
    batching: Batching = Batching()
    ray: Replicas | None = None
    """The engines of a Ray cluster; by default there is one engine, in the server itself."""

    @model_validator(mode="before")
    @classmethod
    def _serve_embedded_model(cls, values: dict[str, object]) -> dict[str, object]:
        return {"models": [EMBEDDED_MODEL], **values}

    @model_validator(mode="after")
    def _check(self) -> "ServerSettings":
        names = [model.name for model in self.models]
        if not names:
            raise ValueError("models: give at least one")
        if double := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"models: two have the name {double!r}; give each its own")
        if wrong := next((name for name in self.aliases.values() if name not in names), None):
            raise ValueError(f"aliases: there is no model {wrong!r}; the models are {', '.join(names)}")
        return self

    @classmethod
    def from_toml(cls, path: Path) -> "ServerSettings":
        """Read settings; paths of models are relative to the file.

        Raises:
            ConfigError: the file does not exist, is no TOML, or a setting is unknown or wrong
        """
        values = read_toml(path, kind="configuration")
        try:
            return cls.model_validate(values, context={"move": lambda file: str(Path(path.parent, file))})
        except ValidationError as error:
            raise ConfigError(f"{path}: {explain_fault(error, cls)}") from error

    def find_model(self, name: str | None) -> ServedModel | None:
        """Return the model of a name or alias, the first one without a name; None if there is none."""
        if name is None or name in ("", "default", *HARD_CODED_NAMES):
            name = self.aliases.get(name or "", self.models[0].name)
        name = self.aliases.get(name, name)
        return next((model for model in self.models if model.name == name), None)


BASE_FIELDS = ("base", "image_encoder", *BaseOptions.model_fields)
"""The settings of a model that every job of it has."""

EMBEDDED_MODEL = {
    "name": "mini",
    "base": "mini",
    "adapters": ["mini", "mini-plus"],
    "controls": ["mini"],
    "scheduler": "dpm++_2m",
    "steps": 10,
    "guidance_scale": 3.0,
}
"""What a server without settings serves, at the guidance scale at which the embedded model is measured."""
