"""Run the application with uvicorn: listen, warm up, drain at SIGTERM."""

import asyncio
import contextlib
import logging
import socket
import sys
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn

from imprompt.errors import ConfigError, ImpromptError
from imprompt.serving.access import LOOPBACK
from imprompt.serving.app import create_app, run_service
from imprompt.serving.service import Service

_log = logging.getLogger("imprompt.serving")

_BACKLOG = 2048
_GRACE = 5
"""Seconds for the last bytes of answers, when all work is over."""


class DrainingServer(uvicorn.Server):
    """A server that at the first signal finishes its work before it stops, and at the second one stops.

    Args:
        config: uvicorn's
        drain: finishes the work
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], asyncio.Future[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Future[None] | None = None

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


def listen(host: str, port: int) -> socket.socket:
    """Open the socket on which the server will listen.

    Raises:
        ConfigError: the address cannot be used
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in LOOPBACK or host.startswith("127.")


def run_server(service: Service, listener: socket.socket, *, drain_seconds: float | int) -> None:
    """Serve until a signal comes.

    Args:
        service: not started yet
        listener: see `listen`
        drain_seconds: the longest time that running jobs get to finish

    Raises:
        ImpromptError: the first model cannot be loaded
    """
    asyncio.run(_serve(service, listener, drain_seconds))


async def _serve(service: Service, listener: socket.socket, drain_seconds: float | int) -> None:
    config = uvicorn.Config(
        create_app(service),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    server = DrainingServer(config, lambda: asyncio.ensure_future(service.drain(drain_seconds)))
    async with run_service(service):
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        warming = asyncio.ensure_future(service.warm_up())
        await asyncio.wait({serving, warming}, return_when=asyncio.FIRST_COMPLETED)
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


def _find_failure(warming: asyncio.Future[None]) -> BaseException | None:
    return warming.exception() if warming.done() and not warming.cancelled() else None


def log_to_standard_error() -> None:
    """Write the server's log, a line for each request, to standard error."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("imprompt").setLevel(logging.INFO)
    # It repeats words of a prompt, which belong into the client's answer and into no log.
    warnings.filterwarnings("ignore", message="this base reads")
