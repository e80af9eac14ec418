"""The web application: routes, page and gate around one service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from imprompt.errors import ImpromptError
from imprompt.serving.api_error import ApiError
from imprompt.serving.middleware import Gate, answer_error
from imprompt.serving.routes import a1111_api, health_api, jobs_api, openai_api
from imprompt.serving.service import Service

_DESCRIPTION = (
    "Pictures from image prompts. Three APIs stand on one queue: /api (jobs with events), /v1 (the OpenAI "
    "Images API) and /sdapi/v1 (a part of A1111's). docs/serving.md describes them."
)


def create_app(service: Service) -> ASGIApp:
    """Build the application; the service is started and closed by the caller."""
    return _surround(build_routes(service), service)


def build_routes(service: Service) -> FastAPI:
    """Build the routes and the page, without the gate before them."""
    app = FastAPI(
        title="imprompt", version=version("imprompt"), description=_DESCRIPTION, docs_url=None, redoc_url=None
    )
    for part in (jobs_api, openai_api, a1111_api, health_api):
        part.add_routes(app.router, service)
    for kind in (ImpromptError, HTTPException, Exception):
        app.add_exception_handler(kind, answer_error)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RequestValidationError, _answer_wrong_request)  # pyright: ignore[reportArgumentType]
    page = service.options.page
    if page is not None and (page / "index.html").is_file():
        app.mount("/", _PageFiles(directory=page, html=True))
    return app


class _PageFiles(StaticFiles):
    """The files of the page; a browser asks each time whether the server has newer ones."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def _surround(app: ASGIApp, service: Service) -> ASGIApp:
    access = service.options.access
    gate = Gate(
        app,
        access=access,
        max_bytes=int(service.settings.limits.body_megabytes * 1e6),
        metrics=service.metrics,
        is_draining=lambda: service.is_draining,
    )
    if not access.origins:
        return gate
    headers = ["authorization", "x-api-key", "content-type", "last-event-id"]
    return CORSMiddleware(
        gate, allow_origins=list(access.origins), allow_methods=["*"], allow_headers=headers
    )


async def _answer_wrong_request(request: Request, error: RequestValidationError) -> object:
    """Name the first field at fault, as the OpenAI API does."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"][1:])
    message = f"{place or 'the body'}: {fault['msg']}"
    return await answer_error(request, ApiError(400, message, code="invalid_value", param=place or None))


@asynccontextmanager
async def run_service(service: Service) -> AsyncIterator[None]:
    """Start a service, and close it at the end."""
    service.start()
    try:
        yield
    finally:
        service.close()
