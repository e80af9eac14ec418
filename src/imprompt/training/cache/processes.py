"""Shards made by several processes on this machine, one part at a time each.

A process that is killed loses the part that it was on; another takes its place and makes that part again.
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

from imprompt.errors import ImpromptError, TrainingError
from imprompt.training.cache.folder import Receipt
from imprompt.training.cache.making import Job, maker_for
from imprompt.training.samples import Part

DEATHS = 3
"""How many processes may die on one part."""


def make_in_processes(parts: Sequence[Part], job: Job) -> Iterator[tuple[int, Receipt]]:
    """Make all parts in `cache.workers` processes; yields the number of each as it is done, and its receipt.

    Raises:
        TrainingError: processes keep dying on the same part
        ImpromptError: what a process could not do
    """
    pool = _Pool(job)
    try:
        yield from pool.make(parts)
    finally:
        pool.stop()


class _Pool:
    """Processes and the parts they are on."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._workers: dict[Connection, _Worker] = {}
        self._busy: dict[Connection, int] = {}
        self._deaths: Counter[int] = Counter()
        self._started = 0

    def make(self, parts: Sequence[Part]) -> Iterator[tuple[int, Receipt]]:
        """Make all parts."""
        waiting = list(reversed(range(len(parts))))
        while waiting or self._busy:
            while waiting and len(self._busy) < self._job.config.cache.workers:
                self._give(waiting.pop(), parts)
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                number = self._busy.pop(connection)
                receipt = self._receive(connection)
                if receipt is not None:
                    yield number, receipt
                else:
                    self._bury(connection, number)
                    waiting.append(number)

    def _give(self, number: int, parts: Sequence[Part]) -> None:
        """Send a part to an idle process, or to a new one."""
        idle = next((one for one in self._workers if one not in self._busy), None)
        connection = idle or self._start()
        self._busy[connection] = number
        with contextlib.suppress(BrokenPipeError):  # it is dead, which we find when we wait for its answer
            connection.send(parts[number])

    def _start(self) -> Connection:
        worker = _Worker(self._job, self._started)
        self._started += 1
        self._workers[worker.connection] = worker
        return worker.connection

    def _receive(self, connection: Connection) -> Receipt | None:
        """What a process has to say; None if it is dead."""
        try:
            said = connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(said, BaseException):
            raise said
        return said

    def _bury(self, connection: Connection, number: int) -> None:
        self._workers.pop(connection).stop()
        self._deaths[number] += 1
        if self._deaths[number] == DEATHS:
            raise TrainingError(
                f"{DEATHS} processes died while they encoded the same samples (out of memory?); set "
                "cache.workers or cache.batch_size lower and run again: what is done stays"
            )

    def stop(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.stop()


class _Worker:
    """A process that makes parts until it is stopped."""

    def __init__(self, job: Job, number: int) -> None:
        if torch.device(job.device).type == "cuda":
            job = replace(job, device=f"cuda:{number % torch.cuda.device_count()}")
        context = _context()
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(job, theirs), daemon=True)
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

    That takes a tenth of a second in place of several; a copy of this process could not use its GPU.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _work(job: Job, connection: Connection) -> None:
    """Make what comes, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to us too; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that unfinished files are removed
    try:
        maker = maker_for(job)
        while True:
            connection.send(maker.make(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except ImpromptError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
