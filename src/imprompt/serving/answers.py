"""The JSON of answers, for /openapi.json: clients are generated from it, and tests compare them with it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """An answer that has no field but those that are described."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorDescription(Answer):
    """One error, as in the OpenAI API."""

    message: str
    type: str
    param: str | None
    """The field at fault."""
    code: str | None


class ErrorAnswer(Answer):
    """The answer to every fault, except in A1111's API."""

    error: ErrorDescription


class WebuiErrorAnswer(Answer):
    """The answer to a fault in A1111's API."""

    error: str
    detail: str
    body: str
    errors: str


class AssetAnswer(Answer):
    """A picture that a client has sent."""

    id: str
    url: str
    width: int
    height: int
    bytes: int


class ExampleAnswer(AssetAnswer):
    """A picture of the server's own."""

    name: str
    seed: int = 0
    """Of one that was drawn."""


class Timings(Answer):
    """Seconds of a job, so far."""

    queue_s: float
    run_s: float


class PictureAnswer(Answer):
    """A picture that was made."""

    picture: int
    """Its place in the job."""
    url: str
    seed: int
    width: int
    height: int
    scale: float | None = None
    """Of its references, if the job varies it."""


class JobFault(Answer):
    """Why a job failed."""

    message: str
    type: str
    code: str


class JobAnswer(Answer):
    """The state of a job."""

    id: str
    status: Literal["queued", "running", "done", "failed", "canceled"]
    model: str
    seed: int
    count: int
    steps: int
    progress: float = Field(ge=0, le=1)
    pictures: list[PictureAnswer]
    events: str
    timings: Timings
    warnings: list[str]
    position: int = 0
    """How many pictures are before it, while it waits."""
    eta_s: float = 0.0
    """Seconds until it is done, while it is not over."""
    error: JobFault | None = None


class ReadyAnswer(Answer):
    """Whether the server takes work."""

    ready: bool
    loaded: list[str]
    reason: str = ""


class ImageDatum(Answer):
    """A picture of the OpenAI API: as base64 or as a link."""

    b64_json: str = ""
    url: str = ""
    seed: int


class ImagesAnswer(Answer):
    """The answer of the OpenAI API, with fields of our own."""

    created: int
    data: list[ImageDatum]
    background: str
    output_format: str
    quality: str
    size: str
    model: str
    timings: Timings
    references_used: int
    warnings: list[str]


class WebuiAnswer(Answer):
    """Pictures of A1111's API."""

    images: list[str]
    parameters: dict[str, Any]
    info: str
    """JSON."""


Descriptions = dict[int | str, dict[str, Any]]
"""Status code → description, as a route of FastAPI takes them."""

FAULTS: Descriptions = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
WEBUI_FAULTS: Descriptions = {"4XX": {"model": WebuiErrorAnswer}, "5XX": {"model": WebuiErrorAnswer}}


def describe_answers(status: int, model: Any) -> Descriptions:
    """Return the answers of a route: JSON, and those to a fault."""
    return {status: {"model": model}, **FAULTS}


def describe_file(*kinds: str) -> Descriptions:
    """Return the answers of a route that sends a file of some kinds, and those to a fault."""
    return {200: {"content": {kind: {} for kind in kinds}}, **FAULTS}
