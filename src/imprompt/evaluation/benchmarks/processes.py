"""Pictures drawn by several processes of this machine, one group at a time each; several GPUs are shared out.

A process that is killed loses the group that it was on; another takes its place and draws that group again.
A group on which processes keep dying is given up, and the run goes on.
"""

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from imprompt.errors import ImpromptError
from imprompt.evaluation.benchmarks.drawing import Job, Outcome, Painter
from imprompt.evaluation.benchmarks.tasks import Group

DEATHS = 3
"""How many processes may die on one group."""


def draw_in_processes(groups: Sequence[Group], job: Job) -> Iterator[Outcome]:
    """Draw all groups in `job.workers` processes; yields each as it is done.

    Raises:
        ImpromptError: what a process could not do at all
    """
    workers: dict[Connection, _Worker] = {}
    busy: dict[Connection, int] = {}
    deaths: Counter[int] = Counter()
    waiting = list(reversed(range(len(groups))))
    started = 0
    try:
        while waiting or busy:
            while waiting and len(busy) < job.workers:
                idle = next((one for one in workers if one not in busy), None)
                if idle is None:
                    worker = _Worker(job, started)
                    idle, started = worker.connection, started + 1
                    workers[idle] = worker
                busy[idle] = waiting.pop()
                with contextlib.suppress(BrokenPipeError):  # it is dead: we find that when we wait for it
                    idle.send(groups[busy[idle]])
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                number = busy.pop(connection)
                fault = _received(connection)
                if fault is not None:
                    yield Outcome(number, fault)
                    continue
                workers.pop(connection).stop()
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    yield Outcome(number, f"{DEATHS} processes died while they drew it (out of memory?)")
                else:
                    waiting.append(number)
    finally:
        for worker in workers.values():
            worker.stop()


def _received(connection: Connection) -> str | None:
    """What a process says of its group; None if it is dead."""
    try:
        said = connection.recv()
    except (EOFError, OSError):
        return None
    if isinstance(said, BaseException):
        raise said
    return said


class _Worker:
    """A process that draws groups until it is stopped."""

    def __init__(self, job: Job, number: int) -> None:
        if torch.device(job.device).type == "cuda":
            job = replace(job, device=f"cuda:{number % torch.cuda.device_count()}")
        context = _context()
        self.connection, theirs = context.Pipe()
        self._process: Any = context.Process(target=_work, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its death ends the connection

    def stop(self) -> None:
        """End the process; what it is writing is not left behind."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._process.close()


def _context() -> Any:
    """How processes start: where it can be, as copies of one that has imported this module and done nothing.

    That is quicker than a new one; a copy of this process could not use its GPU.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _work(job: Job, connection: Connection) -> None:
    """Draw what comes, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to us too; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that unfinished files are removed
    try:
        painter = Painter(job)
        while True:
            connection.send(painter.paint(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except ImpromptError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
