"""The OpenAI Images API: /v1/images/generations, /v1/images/edits, /v1/models."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import Request

from imprompt.serving.access import SIGNED_PATHS
from imprompt.serving.answers import FAULTS, ImagesAnswer, describe_answers, describe_file
from imprompt.serving.api_error import ApiError
from imprompt.serving.encoding import convert_data_uri, encode_file
from imprompt.serving.forms import read_form
from imprompt.serving.jobs import OVER, JobEvent, ServedJob, ServedPicture
from imprompt.serving.openai_requests import QUALITIES, ImagesRequest, translate_request
from imprompt.serving.requests import UnknownServedModel
from imprompt.serving.routes.waiting import (
    check_end,
    client_of,
    error_data,
    stream_events,
    wait_for_job,
    with_pings,
)
from imprompt.serving.service import Service

_LINK_SECONDS = 3600
"""How long the link of a picture is good."""


_FIELDS = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "model": {"type": "string"},
        "n": {"type": "integer", "minimum": 1, "maximum": 10},
        "size": {"type": "string", "examples": ["auto", "512x768"]},
        "quality": {"enum": [*QUALITIES]},
        "output_format": {"enum": ["png", "webp", "jpeg"]},
        "response_format": {"enum": ["b64_json", "url"]},
        "stream": {"type": "boolean"},
    },
    "required": ["prompt"],
}
_JSON = {"application/json": {"schema": _FIELDS}}
_FORM = {"multipart/form-data": {"schema": _FIELDS}}


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes."""
    images = ImagesApi(service)
    answers = describe_answers(200, ImagesAnswer)
    answers[200]["content"] = {"text/event-stream": {}}
    for path, make, body in (("generations", images.generate, _JSON), ("edits", images.edit, _JSON | _FORM)):
        router.add_api_route(
            f"/v1/images/{path}",
            make,
            methods=["POST"],
            response_class=JSONResponse,
            responses=answers,
            openapi_extra={"requestBody": {"content": body, "required": True}},
        )
    router.add_api_route(
        SIGNED_PATHS + "{name}/{index}",
        images.read_file,
        methods=["GET"],
        response_class=Response,
        responses=describe_file("image/png", "image/webp", "image/jpeg"),
    )

    @router.get("/v1/models", responses=FAULTS)
    async def list_models() -> dict[str, Any]:
        """List the models; names that clients have hard-coded mean the first one and are not listed."""
        models = service.settings.models
        return {"object": "list", "data": [_describe_model(model.name) for model in models]}

    @router.get("/v1/models/{name:path}", responses=FAULTS)
    async def read_model(name: str) -> dict[str, Any]:
        """Describe one model."""
        served = service.settings.find_model(name)
        if served is None:
            raise UnknownServedModel(name, [model.name for model in service.settings.models])
        return _describe_model(served.name)


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "imprompt"}


class ImagesApi:
    """Pictures as the OpenAI client asks for them.

    Args:
        service: makes them
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._secret = secrets.token_bytes(32)
        self._by_key: dict[tuple[str, str], ServedJob] = {}

    async def generate(self, request: Request) -> Response:
        """Make pictures from a text, and from `references`."""
        return await self._answer(request, is_edit=False)

    async def edit(self, request: Request) -> Response:
        """Make pictures from pictures; with a mask the first one is repainted, the others are references."""
        return await self._answer(request, is_edit=True)

    async def read_file(self, name: str, index: int, expires: int = 0, signature: str = "") -> FileResponse:
        """Return a picture by its link."""
        is_good = (
            hmac.compare_digest(signature.encode(), self._sign(name, index, expires).encode())
            and expires > time.time()
        )
        if not is_good:
            message = "this link has expired, is of before the server restarted, or never was one"
            raise ApiError(404, message, code="not_found")
        pictures = self._service.jobs.find(name).pictures
        return FileResponse(next(picture.path for picture in pictures if picture.index == index))

    async def _answer(self, request: Request, *, is_edit: bool) -> Response:
        service = self._service
        service.engine.check_room()
        form = await read_form(request, service.assets, service.settings.limits)
        model = form.values.get("model")
        served = service.settings.find_model(model if isinstance(model, str) else None)
        if served is None:
            raise UnknownServedModel(str(model), [model.name for model in service.settings.models])
        images = await asyncio.to_thread(translate_request, form, served, service.assets, is_edit=is_edit)
        job = await self._submit(request, images)
        if images.stream:
            return stream_events(with_pings(self._stream(request, images, job, is_edit=is_edit)))
        await wait_for_job(request, service, job)
        return JSONResponse(await asyncio.to_thread(self._describe, request, images, job))

    async def _submit(self, request: Request, images: ImagesRequest) -> ServedJob:
        """Put the job into the queue; a repeated request joins the job of the first one."""
        client, key = client_of(request), request.headers.get("idempotency-key")
        if key is None:
            return await self._service.submit(images.request, client)
        self._by_key = {one: job for one, job in self._by_key.items() if self._service.jobs.holds(job)}
        known = self._by_key.get((client, key))
        if known is not None and known.status not in ("failed", "canceled"):
            return known
        job = self._by_key[client, key] = await self._service.submit(images.request, client)
        return job

    def _describe(self, request: Request, images: ImagesRequest, job: ServedJob) -> dict[str, Any]:
        return {
            "created": int(job.created),
            "data": [self._describe_picture(request, images, job, picture) for picture in job.pictures],
            **_describe_output(images, job),
            "model": job.plan.served.name,
            "timings": job.timings,
            "references_used": len(images.request.references),
            "warnings": [*images.warnings, *job.warnings],
        }

    def _describe_picture(
        self, request: Request, images: ImagesRequest, job: ServedJob, picture: ServedPicture
    ) -> dict[str, Any]:
        if not images.as_url:
            return {"b64_json": encode_file(picture.path), "seed": picture.seed}
        expires = int(time.time()) + _LINK_SECONDS
        link = f"{SIGNED_PATHS.lstrip('/')}{job.id}/{picture.index}?expires={expires}"
        signature = self._sign(job.id, picture.index, expires)
        return {"url": f"{request.base_url}{link}&signature={signature}", "seed": picture.seed}

    def _sign(self, name: str, index: int, expires: int) -> str:
        return hmac.new(self._secret, f"{name}/{index}/{expires}".encode(), "sha256").hexdigest()

    async def _stream(
        self, request: Request, images: ImagesRequest, job: ServedJob, *, is_edit: bool
    ) -> AsyncIterator[JobEvent]:
        """Yield the events of the API; the job is canceled if the client leaves."""
        prefix, previews = "image_edit" if is_edit else "image_generation", 0
        try:
            async for event in job.follow(0, lambda: None):
                data: Mapping[str, Any] = event.data
                if event.name == "preview":
                    body = {"b64_json": convert_data_uri(data["image"], images.request.format)}
                    body |= {
                        "partial_image_index": previews,
                        "step": data["step"],
                        "picture": data["picture"],
                    }
                    previews += 1
                    yield _make_event(f"{prefix}.partial_image", images, job, body)
                elif event.name == "image":
                    picture = next(one for one in job.pictures if one.index == data["picture"])
                    body = await asyncio.to_thread(self._describe_picture, request, images, job, picture)
                    yield _make_event(f"{prefix}.completed", images, job, {**body, "picture": picture.index})
            try:
                check_end(job)
            except Exception as error:  # the status was sent long ago
                yield JobEvent(0, "error", error_data(error))
        finally:
            if job.status not in OVER:
                self._service.jobs.cancel(job)


def _make_event(name: str, images: ImagesRequest, job: ServedJob, body: Mapping[str, Any]) -> JobEvent:
    return JobEvent(
        0, name, {"type": name, "created_at": int(time.time()), **_describe_output(images, job), **body}
    )


def _describe_output(images: ImagesRequest, job: ServedJob) -> dict[str, Any]:
    size = f"{job.pictures[0].width}x{job.pictures[0].height}" if job.pictures else images.size
    return {
        "background": "opaque",
        "output_format": images.request.format,
        "quality": images.quality,
        "size": size,
    }
