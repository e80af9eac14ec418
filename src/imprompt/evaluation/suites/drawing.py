"""Tasks in, pictures in a folder out: what every engine does, here, in another process or on another machine.

A picture is there whole or not at all, and what is there is not drawn again. It is the same whoever draws it:
groups are fixed (`tasks.grouped`), generators are its own, and on a processor one thread computes, so that no
order of sums depends on the machine's load.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image

from imprompt.errors import DataError
from imprompt.evaluation.methods import Method, load_method
from imprompt.evaluation.suites.folder import BenchmarkFolder, first_of, too_many
from imprompt.evaluation.suites.settings import DrawingSettings, MethodSettings
from imprompt.evaluation.suites.tasks import Group, Task, grouped
from imprompt.inputs.image import load_image
from imprompt.runtime.workers import LostTask, WorkerSpec, run_tasks

Progress = Callable[[int], None]
"""Told how many more pictures are done."""


@dataclass(frozen=True)
class Job:
    """What a worker must know; picklable and hashable.

    Attributes:
        method: what draws
        drawing: how
        folder: where pictures go
        device: where models compute
    """

    method: MethodSettings
    drawing: DrawingSettings
    folder: BenchmarkFolder
    device: str

    @property
    def workers(self) -> int:
        """Processes, or tasks at a time."""
        return self.drawing.workers or max(torch.cuda.device_count(), 1)


class Outcome(NamedTuple):
    """What became of a group: why it failed, or "" if its pictures are there."""

    group: int
    fault: str


class Painter:
    """Draws groups, in this process.

    Raises:
        UnknownModel, CheckpointError, AdapterMismatch: the method's models are not there
        ConfigError: they are others than those that drew before
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._method: Method = load_method(job.method, job.drawing, job.device)
        job.folder.same_models(self._method.fingerprint())

    def paint(self, group: Group) -> str:
        """Draw what is missing of a group; return why it cannot be drawn, or "".

        One group's fault is not the run's; but what we cannot write, and Ctrl-C, end it.

        Raises:
            OutputError: a picture cannot be written
        """
        missing = [task for task in group if not self._job.folder.is_drawn(task)]
        if not missing:
            return ""
        try:
            made = self._draw(group)
        except Exception as error:  # the pipelines are not ours: one may fail in any way
            return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]
        for task, picture in zip(group, made, strict=True):
            if task in missing:
                self._job.folder.write(task, picture)
        return ""

    def _draw(self, group: Group) -> list[Image.Image]:
        first = group[0]
        reference = load_image(first.reference)
        with one_thread(self._job.device), torch.inference_mode():
            seeds = [task.seed for task in group]
            return self._method.draw(reference, first.text, first.scale, seeds)


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On a processor compute with one thread: then the same numbers come out on every machine of its kind."""
    before = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw_all(tasks: Sequence[Task], job: Job, advance: Progress) -> dict[str, str]:
    """Draw what is not drawn yet; return the keys that could not be, and why.

    Raises:
        DataError: more than 1 % of the pictures cannot be drawn
        MissingExtra: Ray is asked for and is not installed
        ImpromptError: models cannot be loaded, or pictures cannot be written
    """
    groups = grouped(tasks, job.drawing.batch_size)
    missing = [group for group in groups if not all(map(job.folder.is_drawn, group))]
    advance(len(tasks) - sum(map(len, missing)))
    failed: dict[str, str] = {}
    if missing:
        for number, fault in draw_groups(missing, job):
            group = missing[number]
            advance(len(group))
            if fault:
                failed |= {task.key: fault for task in group if not job.folder.is_drawn(task)}
                job.folder.note("failed", failed)
                _stop_if_too_many(failed, len(tasks), len(group), job.folder)
    job.folder.note("failed", failed)
    return failed


def _stop_if_too_many(failed: Mapping[str, str], total: int, at_once: int, folder: BenchmarkFolder) -> None:
    # A group fails as one, so groups are what is counted.
    if too_many(len(failed) // at_once, total // at_once):
        raise DataError(
            f"{len(failed)} of {total} pictures cannot be drawn, more than 1 %; the first: {first_of(failed)}"
            f"; all are in {folder.path / 'failed.jsonl'}"
        )


def draw_groups(groups: Sequence[Group], job: Job) -> Iterator[Outcome]:
    """Draw all groups; yields each as it is done, in any order. One on which workers keep dying is given up.

    Raises:
        MissingExtra: Ray is asked for and is not installed
        ImpromptError: what a worker could not do at all
    """
    engine = job.drawing.engine
    if engine == "processes" and job.workers == 1:
        paint = _painter(job, job.device)
        yield from (Outcome(number, paint(group)) for number, group in enumerate(groups))
        return
    there = replace(job, folder=BenchmarkFolder(job.folder.path.resolve()))
    for number, fault in run_tasks(groups, WorkerSpec(_painter, there, job.device, job.workers), engine):
        lost = isinstance(fault, LostTask)
        yield Outcome(number, f"{fault.reason} while they drew it (out of memory?)" if lost else fault)


def _painter(job: Job, device: str) -> Callable[[Group], str]:
    return Painter(replace(job, device=device)).paint
