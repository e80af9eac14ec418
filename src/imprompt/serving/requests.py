"""What a client asks for, in the names of the job format; and the jobs of single pictures that it becomes."""

import random
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from imprompt.errors import ConfigError
from imprompt.generation.job.reference import Number, ReferenceSettings, Span, Text
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.runtime.settings import ClosedSettings, explain_fault
from imprompt.serving.assets import AssetStore, decode_data, is_data
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import BASE_FIELDS, Limits, ServedModel, ServerSettings

MAX_REFERENCES = 16
MAX_PREVIEWS = 20

PictureName = Annotated[str, Field(min_length=1)]
"""The id of an asset, or a data: URI with base64. No URL is fetched."""

PictureNames = PictureName | Annotated[list[PictureName], Field(min_length=1)]

_NOT_OF_THE_JOB = {"model", "adapter", "references", "controls", "strip", "previews", "format", "quality"}
"""The fields of a request that are no settings of a job, or are translated one by one."""

Format = Literal["png", "webp", "jpeg"]
"""The formats of pictures that are made."""


class ReferenceRequest(ReferenceSettings[PictureNames, PictureName]):
    """One image prompt: the settings of a job's, with pictures by their ids."""


class ControlRequest(ClosedSettings):
    """A ControlNet and the picture that it follows."""

    image: PictureName
    model: str | None = None
    scale: Number = 1.0


class GenerationRequest(ClosedSettings):
    """Pictures to make; the fields are those of `imprompt.Job`, with pictures by their ids."""

    model: str | None = None
    """The name of a model of /api/capabilities; by default the first one."""
    adapter: str | None = None
    """One of the model's adapters; by default the first one."""
    prompt: Text = ""
    negative_prompt: Text = ""
    references: tuple[ReferenceRequest, ...] = ()
    guidance_scale: Number | None = None
    guidance_interval: Span | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-1, le=2**63 - 1)] = -1
    """-1 is a random one, which the answer names."""
    count: Annotated[int, Field(ge=1)] = 1
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    init_image: PictureName | None = None
    strength: Number | None = None
    inpaint: PictureName | None = None
    controls: tuple[ControlRequest, ...] = ()
    scheduler: str | None = None
    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    prompt_weighting: bool = False
    strip: Annotated[tuple[Number | None, ...], Field(max_length=20)] = ()
    """Scales for all references, a picture of one seed for each; null is a picture without references."""
    previews: Annotated[int, Field(ge=0, le=MAX_PREVIEWS)] = 0
    """How many previews of each picture are sent while it is made."""
    format: Format = "png"
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """The quality of jpeg and webp; by default 95, and lossless webp."""

    @model_validator(mode="after")
    def _check(self) -> "GenerationRequest":
        if self.strip and not self.references:
            raise ValueError("strip varies the strength of references, and there are none")
        return self


class PicturePlan(NamedTuple):
    """One picture of a request.

    Args:
        job: the job that makes it, and it alone
        scale: the scale of all references, if the request varies it
    """

    job: RequestJob
    scale: float | int | None


class RequestPlan(NamedTuple):
    """A request whose every setting is known and allowed.

    Args:
        request: as the client sent it
        served: its model
        pictures: one for each picture
        assets: the ids of all pictures that it uses
    """

    request: GenerationRequest
    served: ServedModel
    pictures: Sequence[PicturePlan]
    assets: Sequence[str]


def parse_request(values: Any) -> GenerationRequest:
    """Check the types of a request.

    Raises:
        ConfigError: an unknown key (and a similar one), or a wrong value
    """
    try:
        return GenerationRequest.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain_fault(error, GenerationRequest)) from error


async def plan_request(
    request: GenerationRequest, settings: ServerSettings, assets: AssetStore
) -> RequestPlan:
    """Choose the model, store pictures that came with the request, and make the job of each picture.

    Raises:
        UnknownServedModel: there is no such model
        ConfigError, ImageError: a setting or a picture that is not allowed
    """
    served = settings.find_model(request.model)
    if served is None:
        raise UnknownServedModel(request.model or "", [model.name for model in settings.models])
    check_limits(request, settings.limits)
    values = await _Translation(assets, settings.limits, served).translate(request)
    try:
        job = RequestJob.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain_fault(error, RequestJob)) from error
    used = [file.rpartition("/")[2].partition(".")[0] for file in job.files]
    return RequestPlan(request, served, list(_split(job, request)), used)


class UnknownServedModel(ConfigError):
    """The server has no model of this name.

    Args:
        name: what was asked for
        names: the models that there are
    """

    def __init__(self, name: str, names: Sequence[str]) -> None:
        super().__init__(f"there is no model {name[:100]!r} here; the models are {', '.join(names)}")


def check_limits(request: GenerationRequest, limits: Limits) -> None:
    """Refuse what is more than this server makes.

    Raises:
        ConfigError: the first such setting
    """
    pictures = request.count * max(1, len(request.strip))
    values = (
        ("steps", request.steps or 0, limits.steps),
        ("width", request.width or 0, limits.side),
        ("height", request.height or 0, limits.side),
        ("count", pictures, limits.count),
        ("references", len(request.references), MAX_REFERENCES),
        ("pictures that are sent", len(list_pictures(request)), limits.pictures),
    )
    for name, value, most in values:
        if value > most:
            raise ConfigError(f"{name} may be {most} on this server, not {value}")
    if request.scheduler is not None and request.scheduler not in SAMPLERS:
        raise ConfigError(f"scheduler must be one of {', '.join(SAMPLERS)}, not {request.scheduler[:40]!r}")


def list_pictures(request: GenerationRequest) -> list[str]:
    """Return the ids and data of all pictures that a request names."""
    names = [request.init_image, request.inpaint, *(control.image for control in request.controls)]
    for reference in request.references:
        names += [*as_list(reference.images), *as_list(reference.negative), reference.mask]
    return [name for name in names if name is not None]


def as_list(value: str | list[str] | None) -> list[str]:
    """Return a picture or several as a list."""
    return [value] if isinstance(value, str) else value or []


class _Translation:
    """Translates a request into the values of a job: ids into files, names into models."""

    def __init__(self, assets: AssetStore, limits: Limits, served: ServedModel) -> None:
        self._assets, self._limits, self._served = assets, limits, served

    async def translate(self, request: GenerationRequest) -> dict[str, Any]:
        served = self._served
        defaults = {name: getattr(served, name) for name in ("steps", "guidance_scale", "width", "height")}
        own = request.model_dump(include=request.model_fields_set - _NOT_OF_THE_JOB, exclude_none=True)
        size = {"width", "height"} & {*own}
        base = {name: getattr(served, name) for name in BASE_FIELDS}
        values = {**base, **defaults, **({"width": None, "height": None} if size else {}), **own}
        values["scheduler"] = request.scheduler or served.scheduler
        values["seed"] = random.SystemRandom().randrange(2**32) if request.seed < 0 else request.seed
        for name in ("init_image", "inpaint"):
            values[name] = await self._file(own.get(name), name)
        values["references"] = [
            await self._translate_reference(one, f"references[{place}]")
            for place, one in enumerate(request.references)
        ]
        values["controls"] = [await self._translate_control(one) for one in request.controls]
        values["adapter"] = (
            self._choose(request.adapter, served.adapters, "adapter") if request.references else None
        )
        return {**values, "output": str(self._assets.folder / "out.png")}

    async def _translate_reference(self, reference: ReferenceRequest, place: str) -> dict[str, Any]:
        values = reference.model_dump(exclude_none=True)
        for name in ("images", "negative"):
            if name in values:
                values[name] = [await self._file(one, f"{place}.{name}") for one in as_list(values[name])]
        if "mask" in values:
            values["mask"] = await self._file(values["mask"], f"{place}.mask")
        if reference.adapter is not None:
            values["adapter"] = self._choose(reference.adapter, self._served.adapters, "adapter")
        return values

    async def _translate_control(self, control: ControlRequest) -> dict[str, Any]:
        model = self._choose(control.model, self._served.controls, "ControlNet")
        return {"image": await self._file(control.image, "controls"), "model": model, "scale": control.scale}

    async def _file(self, name: str | None, place: str) -> str | None:
        if name is None:
            return None
        if is_data(name):
            asset = await self._assets.add(decode_data(name, place, limits=self._limits), place)
        else:
            asset = self._assets.find(name)
        return str(asset.path)

    def _choose(self, name: str | None, names: Sequence[str], kind: str) -> str:
        if name is None and names:
            return names[0]
        if name is None or name not in names:
            known = f"it has {', '.join(names)}" if names else "it has none"
            raise ConfigError(f"the model {self._served.name} has no {kind} {(name or '')[:60]!r}; {known}")
        return name


def _split(job: RequestJob, request: GenerationRequest) -> "Sequence[PicturePlan]":
    """Return a job for each seed, and for each scale of a strip."""
    plans: list[PicturePlan] = []
    for seed in job.seeds:
        single = job.model_copy(update={"seed": seed, "count": 1})
        if not request.strip:
            plans.append(PicturePlan(single, None))
        for scale in request.strip:
            references = () if scale is None else tuple(_scale(one, scale) for one in job.references)
            plans.append(PicturePlan(single.model_copy(update={"references": references}), scale))
    return plans


def _scale(reference: Any, scale: float | int) -> Any:
    return reference.model_copy(update={"scale": scale})
