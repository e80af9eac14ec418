"""Waiting for a job on behalf of a client, who may leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from imprompt.serving.api_error import ApiError
from imprompt.serving.failures import convert_error
from imprompt.serving.jobs import JobEvent, ServedJob
from imprompt.serving.service import Service

PING_SECONDS = 15.0
"""The longest silence of a stream; proxies cut silent connections."""


class JobCanceled(ApiError):
    """A job was canceled: by another request, or because its client left and nobody reads this answer."""

    def __init__(self) -> None:
        super().__init__(409, "the request was canceled", code="canceled")


def client_of(request: Request) -> str:
    """Return the name of the client, which the gate has found."""
    return request.scope["state"]["client"]


async def wait_for_job(request: Request, service: Service, job: ServedJob) -> None:
    """Wait until a job is done; cancel it if its client leaves.

    Raises:
        ImpromptError: why the job failed
        JobCanceled: nobody waits any more, or somebody else canceled it
    """
    job.waiters += 1
    ending, leaving = (
        asyncio.ensure_future(wait_for_end(job)),
        asyncio.ensure_future(_wait_for_leave(request)),
    )
    try:
        await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (ending, leaving):
            task.cancel()
        job.waiters -= 1
        if not job.waiters and not job.is_over.is_set():
            service.jobs.cancel(job)
    check_end(job)


def check_end(job: ServedJob) -> None:
    """Raise why a job is over, unless it is done.

    Raises:
        Exception: the job's own error, or JobCanceled
    """
    if job.status == "done":
        return
    raise job.error if job.error is not None else JobCanceled()


async def wait_for_end(job: ServedJob) -> None:
    """Wait until nothing more happens to a job."""
    async for _ in job.follow(2**62, lambda: None):
        pass


async def _wait_for_leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def stream_events(events: AsyncIterator[JobEvent | None]) -> StreamingResponse:
    """Answer with server-sent events; None becomes a comment that keeps the connection open."""

    async def write() -> AsyncIterator[str]:
        async for event in events:
            yield ": ping\n\n" if event is None else format_event(event.name, event.data, event.id)

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(write(), media_type="text/event-stream", headers=headers)


def format_event(name: str, data: Mapping[str, Any], number: int = 0) -> str:
    """Return one event as text."""
    number_line = f"id: {number}\n" if number else ""
    return f"{number_line}event: {name}\ndata: {json.dumps(data)}\n\n"


async def with_pings(
    events: AsyncIterator[JobEvent], seconds: float | int = PING_SECONDS
) -> AsyncIterator[JobEvent | None]:
    """Yield the events, and None after each silence of some seconds."""
    pending: asyncio.Task[JobEvent] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))  # pyright: ignore[reportArgumentType]
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield None
                continue
            task, pending = pending, None
            try:
                event = task.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()


def error_data(error: Exception) -> dict[str, Any]:
    """Return the data of an error in the middle of a stream of the OpenAI API."""
    converted = convert_error(error)
    return {
        "error": {
            "message": converted.message,
            "type": converted.kind,
            "code": converted.code,
            "param": converted.param,
        }
    }
