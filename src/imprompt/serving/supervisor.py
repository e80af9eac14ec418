"""Keep a server running: it works in a process of its own, which is started again when it is killed.

The supervisor is a process without models: it opens the socket, starts the worker, passes signals on, and
answers with 503 while a new worker loads its models. The two hold a pair of sockets. The worker writes into
it when it answers requests, or why it cannot; and it stops when the supervisor is gone.
"""

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from imprompt.errors import ConfigError, ImpromptError

_log = logging.getLogger("imprompt.serving")

_BACKLOG = 2048
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a worker is started again that died soon after its start; each time twice as long."""

_SOON = 60.0
_LOOK = 0.2
"""Seconds between two looks at signals and at the worker."""

_CLIENT_SECONDS = 0.2
"""The longest time that a client gets to send its request while there is no worker."""

_READY, _FAILED = b"r", b"f"
_DEFECT = 70

_GAP = {
    "error": {
        "message": "the server was killed and starts again: try again in a few seconds",
        "type": "server_error",
        "param": None,
        "code": "restarting",
    }
}


class ServerFailure(ImpromptError):
    """The server could not be started, or ended for a reason that it states."""


class Worker:
    """What a worker process knows of its supervisor.

    Args:
        folder: an empty folder for its files
        restarts: how many workers were killed before it
        link: the pair's other end; None without a supervisor
    """

    def __init__(self, folder: Path, restarts: int = 0, link: socket.socket | None = None) -> None:
        self.folder, self.restarts, self._link = folder, restarts, link

    def report_ready(self) -> None:
        """Say that requests are answered from now on."""
        self._send(_READY)

    def report_failure(self, message: str) -> None:
        """Say why there will be no server."""
        self._send(_FAILED + message.encode())

    def stop_with_supervisor(self) -> None:
        """Send this process SIGTERM when its supervisor is gone."""
        threading.Thread(target=self._await_end, name="supervisor", daemon=True).start()

    def _send(self, data: bytes) -> None:
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.sendall(data)

    def _await_end(self) -> None:
        assert self._link is not None
        with contextlib.suppress(OSError):
            self._link.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)


def supervise(listener: socket.socket, work: Callable[[Worker], None]) -> None:
    """Run a server in a process of its own, until it ends by itself or by a signal.

    Where a process cannot be forked, the server runs in this one and is not supervised.

    Args:
        listener: the socket on which the server listens, see `listen`
        work: runs the server in the worker process

    Raises:
        ImpromptError: why the server could not be started
    """
    if hasattr(os, "fork"):
        _Supervisor(listener, work).run()
        return
    with tempfile.TemporaryDirectory(prefix="imprompt-serve-") as folder:
        work(Worker(Path(folder)))


class _Supervisor:
    """Starts workers, one after another.

    Args:
        listener: see `supervise`
        work: see there
    """

    def __init__(self, listener: socket.socket, work: Callable[[Worker], None]) -> None:
        self._listener, self._work = listener, work
        self._pid: int | None = None
        self._is_stopping = False
        self._restarts = 0

    def run(self) -> None:
        """Start a worker, and another one each time it is killed, until one ends by itself."""
        self._listener.setblocking(False)
        handlers = {sign: signal.signal(sign, self._stop) for sign in (signal.SIGTERM, signal.SIGINT)}
        try:
            pause = _PAUSE
            while (lifetime := self._run_worker()) is not None and not self._is_stopping:
                self._restarts += 1
                pause = min(2 * pause, _LONGEST_PAUSE) if lifetime < _SOON else _PAUSE
                self._answer_until(time.monotonic() + (pause if lifetime < _SOON else 0))
        finally:
            for sign, handler in handlers.items():
                signal.signal(sign, handler)

    def _stop(self, *_: object) -> None:
        self._is_stopping = True
        if self._pid is not None:
            os.kill(self._pid, signal.SIGTERM)

    def _run_worker(self) -> float | None:
        """Run a worker to its end; return how many seconds it lived if it was killed, else None.

        Raises:
            ServerFailure: what the worker says, or that it died before it was ready for the first time
        """
        own, other = socket.socketpair()
        start = time.monotonic()
        with own, tempfile.TemporaryDirectory(prefix="imprompt-serve-") as folder:
            with other:
                worker = Worker(Path(folder), self._restarts, other)
                self._pid = self._fork(worker, own)
            if self._is_stopping:  # the signal came before there was a process to pass it to
                os.kill(self._pid, signal.SIGTERM)
            was_ready, message = self._follow(own)
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid = None
        if message:
            raise ServerFailure(message)
        if status == 0 or self._is_stopping:
            return None
        reason = f"the server {_describe_end(status)}"
        if not was_ready and not self._restarts:
            raise ServerFailure(f"{reason} while it started")
        _log.error("%s, and another one starts; the jobs of the first are lost", reason)
        return time.monotonic() - start

    def _fork(self, worker: Worker, own: socket.socket) -> int:
        """Start the worker process; return its id in the supervisor, and never in the worker."""
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # It is about threads that hold locks; the supervisor has none but NumPy's, which sleep.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            own.close()
            self._work_and_exit(worker)
        return pid

    def _work_and_exit(self, worker: Worker) -> NoReturn:
        code = _DEFECT
        try:
            # Ctrl-C reaches a whole group of processes; a second signal would stop the worker at once.
            os.setpgid(0, 0)
            for sign in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sign, signal.SIG_DFL)
            worker.stop_with_supervisor()
            self._work(worker)
            code = 0
        except ImpromptError as error:
            worker.report_failure(str(error))
        except BaseException:
            traceback.print_exc()
        finally:
            shutil.rmtree(worker.folder, ignore_errors=True)  # the supervisor may be gone
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _follow(self, link: socket.socket) -> tuple[bool, str]:
        """Wait for the end of the worker; return whether it was ready, and why it failed if it says so."""
        was_ready, message = False, b""
        while True:
            watched = [link] if was_ready or not self._restarts else [link, self._listener]
            readable, _, _ = select.select(watched, [], [], _LOOK)
            if link in readable:
                if not (data := _receive(link)):
                    return was_ready, message.removeprefix(_FAILED).decode(errors="replace")
                was_ready = was_ready or data == _READY
                message += b"" if data == _READY else data
            elif readable:
                _answer_client(self._listener)

    def _answer_until(self, end: float) -> None:
        """Answer clients until a time, or until a signal."""
        while not self._is_stopping and time.monotonic() < end:
            if select.select([self._listener], [], [], _LOOK)[0]:
                _answer_client(self._listener)


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(65536)
    except ConnectionError:  # the worker died before it had read everything
        return b""


def _describe_end(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _answer_client(listener: socket.socket) -> None:
    """Accept one connection, read the beginning of its request, and answer with 503."""
    body = json.dumps(_GAP).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):  # whatever a client does
        client, _ = listener.accept()
        with client:
            client.settimeout(_CLIENT_SECONDS)
            client.recv(65536)
            client.sendall(head.encode() + body)
            client.shutdown(socket.SHUT_WR)
            client.recv(65536)


# The command's own part


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


def log_to_standard_error() -> None:
    """Write the server's log, a line for each request, to standard error."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("imprompt").setLevel(logging.INFO)
    # It repeats words of a prompt, which belong into the client's answer and into no log.
    warnings.filterwarnings("ignore", message="this base reads")
