"""Run the application with uvicorn: listen, warm up, drain at SIGTERM."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from imprompt.errors import ImpromptError
from imprompt.serving.app import create_app, run_service
from imprompt.serving.service import Service

_log = logging.getLogger("imprompt.serving")

_GRACE = 5
"""Seconds for the last bytes of answers, when all work is over."""


class DrainingServer(uvicorn.Server):
    """A server that at the first signal finishes its work before it stops, and at the second one stops.

    Args:
        config: uvicorn's
        drain: finishes the work
        on_start: called when requests are answered
    """

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], asyncio.Future[None]], on_start: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain, self._on_start = drain, on_start
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        _log.info("stopping: running jobs are finished first; a second signal stops at once")
        self._draining = self._drain()
        self._draining.add_done_callback(lambda _: setattr(self, "should_exit", True))


def run_server(
    service: Service,
    listener: socket.socket,
    *,
    drain_seconds: float | int,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes.

    Args:
        service: not started yet
        listener: see `listen`
        drain_seconds: the longest time that running jobs get to finish
        on_start: called when requests are answered

    Raises:
        ImpromptError: the first model cannot be loaded
    """
    asyncio.run(_serve(service, listener, drain_seconds, on_start))


async def _serve(
    service: Service, listener: socket.socket, drain_seconds: float | int, on_start: Callable[[], None]
) -> None:
    config = uvicorn.Config(
        create_app(service),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    server = DrainingServer(config, lambda: asyncio.ensure_future(service.drain(drain_seconds)), on_start)
    async with run_service(service):
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        warming = asyncio.ensure_future(service.warm_up())
        await asyncio.wait({serving, warming}, return_when=asyncio.FIRST_COMPLETED)
        _restore_signal_handlers()
        failure = _find_failure(warming)
        if failure is not None:
            server.should_exit = True
        priming = asyncio.ensure_future(service.prime())
        await serving
        for task in (warming, priming):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ImpromptError):
                await task
    if failure is not None:
        raise failure


def _restore_signal_handlers() -> None:
    """Let Python handle SIGTERM and SIGINT again, as it believes that it does.

    Ray puts Abseil's handler of crashes in its place, which prints a stack trace and ends the process after
    three seconds (absl/debugging/failure_signal_handler.h): running jobs could not be finished.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.getsignal(number))


def _find_failure(warming: asyncio.Future[None]) -> BaseException | None:
    return warming.exception() if warming.done() and not warming.cancelled() else None
