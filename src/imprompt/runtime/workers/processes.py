"""Tasks done by several processes of this machine."""

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
from imprompt.runtime.workers.crew import Crew, Lost, Made, Task

DEATHS = 3
"""How many processes may die on one task."""


def done_by_processes(tasks: Sequence[Task], crew: Crew[Task, Made]) -> Iterator[tuple[int, Made | Lost]]:
    """Do all tasks in `crew.size` processes; yields the number of each as it is done, and what was made.

    Raises:
        ImpromptError: what a process could not do
    """
    pool = _Pool(crew)
    try:
        yield from pool.done(tasks)
    finally:
        pool.stop()


class _Pool(Generic[Task, Made]):
    """Processes and the tasks they are on."""

    def __init__(self, crew: Crew[Task, Made]) -> None:
        self._crew = crew
        self._workers: dict[Connection, _Worker] = {}
        self._busy: dict[Connection, int] = {}
        self._deaths: Counter[int] = Counter()
        self._started = 0

    def done(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Made | Lost]]:
        """Do all tasks."""
        waiting = list(reversed(range(len(tasks))))
        while waiting or self._busy:
            while waiting and len(self._busy) < self._crew.size:
                number = waiting.pop()
                self._give(number, tasks[number])
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                number = self._busy.pop(connection)
                made = self._received(connection, number)
                if isinstance(made, Lost) and self._deaths[number] < DEATHS:
                    waiting.append(number)
                else:
                    yield number, made

    def _give(self, number: int, task: Task) -> None:
        """Send a task to an idle process, or to a new one."""
        idle = next((one for one in self._workers if one not in self._busy), None)
        connection = idle or self._start()
        self._busy[connection] = number
        with contextlib.suppress(BrokenPipeError):  # it is dead, which we find when we wait for its answer
            connection.send(task)

    def _start(self) -> Connection:
        worker = _Worker(self._crew, self._started)
        self._started += 1
        self._workers[worker.connection] = worker
        return worker.connection

    def _received(self, connection: Connection, number: int) -> Made | Lost:
        """What a process has made; if it is dead, it is buried."""
        try:
            said = connection.recv()
        except (EOFError, OSError):
            self._workers.pop(connection).stop()
            self._deaths[number] += 1
            return Lost(f"{DEATHS} processes died")
        if isinstance(said, BaseException):
            raise said
        return said

    def stop(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.stop()


class _Worker:
    """A process that does tasks until it is stopped."""

    def __init__(self, crew: Crew[Any, Any], number: int) -> None:
        device = f"cuda:{number % torch.cuda.device_count()}" if crew.needs_gpu else crew.device
        context = _context(crew.prepare.__module__)
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(crew, device, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its death ends the connection

    def stop(self) -> None:
        """End the process; what it is writing is not left behind."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._process.close()


def _context(module: str) -> Any:
    """How processes start: where it can be, as copies of one that has imported `module` and done nothing.

    That takes a tenth of a second in place of several; a copy of this process could not use its GPU.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _work(crew: Crew[Any, Any], device: str, connection: Connection) -> None:
    """Do what comes, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to us too; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that unfinished files are removed
    try:
        do = crew.prepare(crew.job, device)
        while True:
            connection.send(do(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except ImpromptError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
