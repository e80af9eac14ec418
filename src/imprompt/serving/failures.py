"""Errors as answers: one sentence, in the form that the clients of each API read."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from imprompt.errors import ImpromptError, MissingExtra
from imprompt.serving.api_error import ApiError
from imprompt.serving.engine.base import EngineFailure, QueueFull
from imprompt.serving.job_errors import INTERNAL_ERROR, ServerStopping, UnknownJob
from imprompt.serving.requests import GenerationRequest, UnknownServedModel

_MAX_WAIT = 120
"""The longest Retry-After that the OpenAI client honors, in seconds."""


def convert_error(error: Exception) -> ApiError:
    """Return the answer for an error; of a defect nothing is revealed."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            wait = str(max(1, min(_MAX_WAIT, round(error.wait))))
            return ApiError(
                429, str(error), kind="rate_limit_error", code="queue_full", headers={"Retry-After": wait}
            )
        case UnknownServedModel():
            return ApiError(404, str(error), code="model_not_found", param="model")
        case UnknownJob():
            return ApiError(404, str(error), code="not_found")
        case EngineFailure():
            return ApiError(500, str(error), kind="server_error", code="engine_failure")
        case ServerStopping():
            return ApiError(
                503, str(error), kind="server_error", code="draining", headers={"Retry-After": "10"}
            )
        case MissingExtra():
            return ApiError(501, str(error), kind="server_error", code="not_installed")
        case ImpromptError():
            return ApiError(400, str(error), code="invalid_value", param=_find_field(str(error)))
        case HTTPException():
            kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
            return ApiError(error.status_code, str(error.detail), kind=kind, headers=error.headers)
    return ApiError(500, INTERNAL_ERROR, kind="server_error", code="internal_error")


def _find_field(message: str) -> str | None:
    """Return the field with which a message begins: "references[0].scale must be ..."."""
    word = message.partition(" ")[0].rstrip(":,")
    field = word.partition("[")[0].partition(".")[0]
    return word if field in GenerationRequest.model_fields else None


def render_error(error: ApiError, path: str) -> JSONResponse:
    """Return the answer as the clients of a path expect it."""
    headers = dict(error.headers or {})
    if error.status_code in (400, 401, 403, 404, 405, 409, 413, 422, 501):
        headers["x-should-retry"] = "false"  # The OpenAI client obeys it.
    body: dict[str, Any] = {"error": describe_failure(error)}
    if path.startswith(("/sdapi/", "/controlnet/")):
        name = {404: "NotFound", 422: "UnprocessableEntity"}.get(error.status_code, type(error).__name__)
        body = {"error": name, "detail": error.message, "body": "", "errors": error.message}
    return JSONResponse(body, error.status_code, headers)


def describe_failure(error: ApiError) -> dict[str, Any]:
    """Return the error object of the OpenAI API."""
    return {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
