"""Run tasks in several processes of this machine."""

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

import torch

from imprompt.errors import ImpromptError
from imprompt.runtime.workers.spec import LostTask, Result, Task, WorkerSpec

ATTEMPTS = 3
"""Number of processes that try a task, one after another, before it is given up."""


def run_in_processes(
    tasks: Sequence[Task], spec: WorkerSpec[Task, Result]
) -> Iterator[tuple[int, Result | LostTask]]:
    """Run all tasks in `spec.size` processes; yield the number of each task and its result as it finishes.

    Raises:
        ImpromptError: a task raised it
    """
    pool = _Pool(spec)
    try:
        yield from pool.run(tasks)
    finally:
        pool.stop()


class _Pool(Generic[Task, Result]):
    """Worker processes, and the task that each is doing."""

    def __init__(self, spec: WorkerSpec[Task, Result]) -> None:
        self._spec = spec
        self._workers: dict[Connection, _Worker] = {}
        self._busy: dict[Connection, int] = {}
        self._crashes: Counter[int] = Counter()
        self._started = 0

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | LostTask]]:
        """Run all tasks."""
        waiting = list(reversed(range(len(tasks))))
        while waiting or self._busy:
            while waiting and len(self._busy) < self._spec.size:
                number = waiting.pop()
                self._send(number, tasks[number])
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                number = self._busy.pop(connection)
                result = self._receive(connection, number)
                if isinstance(result, LostTask) and self._crashes[number] < ATTEMPTS:
                    waiting.append(number)
                else:
                    yield number, result

    def _send(self, number: int, task: Task) -> None:
        """Send a task to an idle process, or start one for it."""
        idle = next((one for one in self._workers if one not in self._busy), None)
        connection = idle or self._start()
        self._busy[connection] = number
        with contextlib.suppress(BrokenPipeError):  # a dead process is noticed when its result is awaited
            connection.send(task)

    def _start(self) -> Connection:
        worker = _Worker(self._spec, self._started)
        self._started += 1
        self._workers[worker.connection] = worker
        return worker.connection

    def _receive(self, connection: Connection, number: int) -> Result | LostTask:
        """Return the result of a process; if the process is dead, remove it."""
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            self._workers.pop(connection).stop()
            self._crashes[number] += 1
            return LostTask(f"{ATTEMPTS} processes died")
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        """Stop all processes."""
        for worker in self._workers.values():
            worker.stop()


class _Worker:
    """A process that does tasks until it is stopped."""

    def __init__(self, spec: WorkerSpec[Any, Any], number: int) -> None:
        device = f"cuda:{number % torch.cuda.device_count()}" if spec.needs_gpu else spec.device
        context = _start_context(spec.prepare.__module__)
        self.connection, child_end = context.Pipe()
        self._process = context.Process(target=_work, args=(spec, device, child_end), daemon=True)
        self._process.start()
        child_end.close()  # so that the connection ends when the process dies

    def stop(self) -> None:
        """Stop the process; it removes the file that it was writing."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._process.close()


def _start_context(module: str) -> Any:
    """Return how processes start: where possible, as forks of a process that only has imported `module`.

    Such a start takes a tenth of a second instead of several. A fork of this process could not use its GPU.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _work(spec: WorkerSpec[Any, Any], device: str, connection: Connection) -> None:
    """Do the tasks that arrive until the other end of the connection is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the terminal signals this process too, but the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that unfinished files are removed
    try:
        do = spec.prepare(spec.job, device)
        while True:
            connection.send(do(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except ImpromptError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
