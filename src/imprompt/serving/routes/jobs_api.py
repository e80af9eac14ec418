"""The jobs API: jobs, their events and pictures, pictures that clients send, what the server can do."""

import asyncio
import io
import random
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image
from starlette.requests import Request

from imprompt.errors import ConfigError, ImageError, MissingExtra
from imprompt.inputs.choices import CropName
from imprompt.serving.answers import (
    FAULTS,
    AssetAnswer,
    ExampleAnswer,
    JobAnswer,
    describe_answers,
    describe_file,
)
from imprompt.serving.api_error import ApiError
from imprompt.serving.assets import Asset, UnknownAsset
from imprompt.serving.capabilities import describe_capabilities
from imprompt.serving.forms import parse_json
from imprompt.serving.job_errors import describe_error
from imprompt.serving.jobs import OVER, ServedJob, describe_picture
from imprompt.serving.request_job import RequestJob
from imprompt.serving.requests import GenerationRequest, parse_request
from imprompt.serving.routes.waiting import client_of, stream_events, with_pings
from imprompt.serving.service import Service

_TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}
_PICTURE_BODY = {"content": {kind: {} for kind in _TYPES.values()}, "required": True}
_GAP = 8


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes of jobs, assets, examples and capabilities."""
    _add_jobs(router, service)
    _add_pictures(router, service)

    @router.get("/api/capabilities", responses=FAULTS)
    async def describe() -> dict[str, Any]:
        """Return models, adapters, samplers and limits."""
        return await asyncio.to_thread(describe_capabilities, service)


def _add_jobs(router: APIRouter, service: Service) -> None:
    body = {
        "content": {"application/json": {"schema": GenerationRequest.model_json_schema()}},
        "required": True,
    }

    @router.post(
        "/api/jobs",
        status_code=202,
        response_class=JSONResponse,
        responses=describe_answers(202, JobAnswer),
        openapi_extra={"requestBody": body},
    )
    async def submit(request: Request) -> JSONResponse:
        """Put a job into the queue."""
        service.engine.check_room()
        values = parse_json(await request.body())
        job = await service.submit(parse_request(values), client_of(request))
        return JSONResponse(describe_job(service, job), 202, {"Location": f"/api/jobs/{job.id}"})

    @router.get("/api/jobs/{name}", responses=describe_answers(200, JobAnswer))
    async def read(name: str) -> dict[str, Any]:
        """Return the state of a job."""
        return describe_job(service, service.jobs.find(name))

    @router.get(
        "/api/jobs/{name}/events",
        response_class=Response,
        responses=describe_file("text/event-stream")
        | {204: {"description": "The job is over, and nothing is left to send."}},
    )
    async def follow(name: str, last_event_id: Annotated[int, Header()] = 0) -> Response:
        """Send the events of a job, from the beginning or after Last-Event-ID."""
        job = service.jobs.find(name)
        if job.status in OVER and not job.events_after(last_event_id):
            return Response(status_code=204)  # A browser would connect again and again otherwise.
        events = job.follow(last_event_id, lambda: service.jobs.find_place(job))
        return stream_events(with_pings(events))

    @router.delete("/api/jobs/{name}", responses=describe_answers(200, JobAnswer))
    async def cancel(name: str) -> dict[str, Any]:
        """Cancel a job; what is computed of it stops before the next step."""
        job = service.jobs.find(name)
        service.jobs.cancel(job)
        return describe_job(service, job)

    @router.get(
        "/api/jobs/{name}/pictures/{index}",
        response_class=Response,
        responses=describe_file(*_TYPES.values()),
    )
    async def read_picture(name: str, index: int) -> FileResponse:
        """Return a picture, which carries its settings."""
        job = service.jobs.find(name)
        picture = next((one for one in job.pictures if one.index == index), None)
        if picture is None:
            raise ApiError(404, f"job {name[:40]} has no picture {index} (yet)", code="not_found")
        return FileResponse(picture.path, media_type=_TYPES[picture.path.suffix])


def describe_job(service: Service, job: ServedJob) -> dict[str, Any]:
    """Return the state of a job as JSON can hold it."""
    described: dict[str, Any] = {
        "id": job.id,
        "status": job.status,
        "model": job.plan.served.name,
        "seed": job.plan.pictures[0].job.seed,
        "count": len(job.plan.pictures),
        "steps": job.plan.pictures[0].job.steps,
        "progress": _measure_progress(job),
        "pictures": [describe_picture(job, picture) for picture in job.pictures],
        "events": f"/api/jobs/{job.id}/events",
        "timings": job.timings,
        "warnings": job.warnings,
    }
    if job.status not in OVER:
        described |= {"eta_s": service.jobs.estimate(job), **(service.jobs.find_place(job) or {})}
    return described | ({"error": describe_error(job.error)} if job.error is not None else {})


def _measure_progress(job: ServedJob) -> float:
    """Return the part of all steps that is done, 0 to 1."""
    if job.status == "done":
        return 1.0
    shares = [done / steps for done, steps in list(job.progress.values())]
    return round(sum(shares) / len(job.plan.pictures), 4)


# Pictures that clients send


def _add_pictures(router: APIRouter, service: Service) -> None:
    @router.post(
        "/api/assets",
        status_code=201,
        responses=describe_answers(201, AssetAnswer),
        openapi_extra={"requestBody": _PICTURE_BODY},
    )
    async def store(request: Request) -> JSONResponse:
        """Store a picture: the body itself, or the field "file" of a form."""
        return JSONResponse(describe_asset(await service.assets.add(await _read_picture(request))), 201)

    @router.get("/api/assets/{name}", response_class=Response, responses=describe_file(*_TYPES.values()))
    async def read(name: str) -> FileResponse:
        """Return a picture as it was sent."""
        asset = _find_asset(service, name)
        return FileResponse(asset.path, media_type=_TYPES[asset.path.suffix])

    @router.get("/api/assets/{name}/view", response_class=Response, responses=describe_file("image/png"))
    async def view(
        name: str,
        model: str | None = None,
        adapter: str | None = None,
        crop: CropName | None = None,
        x: float | None = None,
        y: float | None = None,
    ) -> Response:
        """Return, as PNG, exactly what the image encoder of an adapter sees of a picture."""
        asset = _find_asset(service, name)
        window = (x, y) if x is not None and y is not None else crop or "native"
        picture = await asyncio.to_thread(draw_view, service, asset, model, adapter, window)
        file = io.BytesIO()
        picture.save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    @router.get("/api/examples", responses=describe_answers(200, list[ExampleAnswer]))
    async def list_examples() -> list[dict[str, Any]]:
        """Return three pictures to begin with."""
        return [{"name": name, **describe_asset(asset)} for name, asset in service.examples]

    @router.post("/api/examples/draw", status_code=201, responses=describe_answers(201, ExampleAnswer))
    async def draw(values: Annotated[dict[str, Any] | None, Body()] = None) -> JSONResponse:
        """Draw a new character, as `imprompt mini draw`."""
        seed = (values or {}).get("seed")
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**63):
            raise ConfigError(f"seed must be a whole number from 0 on, not {seed!r:.40}")
        seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        if service.options.draw is None:
            raise MissingExtra("dicebear_core", "draw")
        picture = await asyncio.to_thread(service.options.draw, seed)
        file = io.BytesIO()
        picture.save(file, "PNG")
        asset = await service.assets.add(file.getvalue(), "the drawing")
        return JSONResponse({"name": f"character {seed}", "seed": seed, **describe_asset(asset)}, 201)


async def _read_picture(request: Request) -> bytes:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise ImageError("the form has no file in the field 'file'")
        return await file.read()


def _find_asset(service: Service, name: str) -> Asset:
    try:
        return service.assets.find(name)
    except UnknownAsset as error:
        raise ApiError(404, str(error), code="not_found") from error


def describe_asset(asset: Asset) -> dict[str, Any]:
    """Return a stored picture as JSON can hold it."""
    return {
        "id": asset.id,
        "url": f"/api/assets/{asset.id}",
        "width": asset.width,
        "height": asset.height,
        "bytes": asset.bytes,
    }


def draw_view(
    service: Service, asset: Asset, model: str | None, adapter: str | None, crop: Any
) -> Image.Image:
    """Draw what an image encoder receives of a picture; several tiles stand in a row.

    Raises:
        ImpromptError: an unknown model, adapter or crop
    """
    served = service.settings.find_model(model)
    if served is None or not served.adapters or adapter not in (None, *served.adapters):
        raise ConfigError(f"there is no adapter {adapter!r:.60} of a model {model!r:.60}")
    name = adapter or served.adapters[0]
    values = {"references": [str(asset.path)], "adapter": name, "base": served.base}
    job = RequestJob.model_validate(values | {"image_encoder": served.image_encoder})
    with service.assets.hold([asset.id]):
        views = service.engine.list_views(served, job, crop)
    row = Image.new("RGB", (sum(view.width + _GAP for view in views) - _GAP, views[0].height), "white")
    for place, view in enumerate(views):
        row.paste(view, (place * (view.width + _GAP), 0))
    return row
