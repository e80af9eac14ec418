"""Why a job has no pictures, and what its client hears of it."""

from typing import Any

from imprompt.errors import ImpromptError
from imprompt.serving.engine.base import EngineFailure

INTERNAL_ERROR = "the server failed while it made this picture; its log says why"
"""What a client hears of a defect; paths and traces stay in the log."""


class UnknownJob(ImpromptError):
    """There is no job of this id: there never was, it was dropped, or the server has restarted.

    Args:
        name: the id
        is_of_earlier_run: whether it was the id of a job before the server restarted
    """

    def __init__(self, name: str, *, is_of_earlier_run: bool) -> None:
        reason = "the server has restarted since; send it again" if is_of_earlier_run else "(any more)"
        super().__init__(f"there is no job {name[:40]!r}{':' if is_of_earlier_run else ''} {reason}")


class ServerStopping(ImpromptError):
    """The server is about to stop; another one, or a later attempt, may succeed."""

    def __init__(self) -> None:
        super().__init__("the server is about to stop: try again later")


def describe_error(error: Exception) -> dict[str, Any]:
    """Return the data of an `error` event: one sentence, and whose fault it is."""
    if isinstance(error, EngineFailure):
        return {"message": str(error), "type": "server_error", "code": "engine_failure"}
    if isinstance(error, ServerStopping):
        return {"message": str(error), "type": "server_error", "code": "draining"}
    if isinstance(error, ImpromptError):
        return {"message": str(error), "type": "invalid_request_error", "code": "invalid_value"}
    return {"message": INTERNAL_ERROR, "type": "server_error", "code": "internal_error"}
