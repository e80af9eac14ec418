"""A killed server is started again, clients hear of it, and nothing is left behind; without any model."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import served
import supervised

Start = Callable[[str], tuple[subprocess.Popen[str], int]]


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file for which a server waits that takes the place of a killed one."""
    file = tmp_path / "go"
    file.touch()
    return file


@pytest.fixture
def start(go: Path) -> Iterator[Start]:
    """Start a supervised server; return the supervisor's process and the port."""
    with contextlib.ExitStack() as stack:

        def start(how: str) -> tuple[subprocess.Popen[str], int]:
            command = [sys.executable, supervised.__file__, how, str(go)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, int(process.stdout.readline())

        yield start


def ask(port: int) -> tuple[int, Any]:
    """Return the status and the JSON of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, json.load(response)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code of a process that ends, and what it wrote on standard error."""
    _, error = process.communicate(timeout=20)
    return process.returncode, error


def answers_again(port: int, restarts: int) -> bool:
    status, body = ask(port)
    return status == 200 and body[1] == restarts


def test_a_killed_worker_is_replaced_and_the_log_says_so(start: Start) -> None:
    process, port = start("serve")
    for count in (1, 2):
        status, (worker, restarts, folder) = ask(port)
        assert (status, restarts) == (200, count - 1)
        assert worker != process.pid
        os.kill(worker, signal.SIGKILL)
        assert served.wait_until(lambda count=count: answers_again(port, count))
        assert not Path(folder).exists()
    process.terminate()
    code, error = end(process)
    assert code == 0
    assert error.count("the server was killed by SIGKILL, and another one starts") == 2


def test_clients_hear_that_the_server_starts_again(start: Start, go: Path) -> None:
    go.unlink()
    _, port = start("serve")
    worker = ask(port)[1][0]
    os.kill(worker, signal.SIGKILL)
    assert served.wait_until(lambda: not is_running(worker))
    status, body = ask(port)
    assert (status, body["error"]["code"]) == (503, "restarting")
    go.touch()
    assert served.wait_until(lambda: answers_again(port, 1))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_worker_and_supervisor(start: Start, sign: signal.Signals) -> None:
    process, port = start("serve")
    worker, _, folder = ask(port)[1]
    process.send_signal(sign)
    code, error = end(process)
    assert (code, error) == (0, "")
    assert not is_running(worker)
    assert not Path(folder).exists()


def test_a_worker_stops_when_its_supervisor_is_killed(start: Start) -> None:
    process, port = start("serve")
    worker, _, folder = ask(port)[1]
    process.kill()
    assert served.wait_until(lambda: not is_running(worker))
    assert not Path(folder).exists()


def test_a_server_that_cannot_start_is_not_tried_again(start: Start) -> None:
    process, _ = start("refuse")
    assert end(process) == (1, "imprompt: there is no model\n")


def test_a_server_that_dies_while_it_starts_is_not_tried_again(start: Start) -> None:
    process, _ = start("die")
    code, error = end(process)
    assert code == 1
    assert error.strip().splitlines()[-1] == "imprompt: the server was killed by SIGSEGV while it started"
