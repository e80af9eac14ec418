"""Pictures drawn by Ray tasks, on one machine or on many that share the output folder and the data.

A task whose process or machine dies is started again by Ray; pictures that were finished are not drawn again.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from imprompt.errors import ImpromptError
from imprompt.evaluation.benchmarks.drawing import Job, Outcome, Painter
from imprompt.evaluation.benchmarks.folder import BenchmarkFolder
from imprompt.evaluation.benchmarks.tasks import Group

RETRIES = 3
"""How often Ray starts a task again whose process has died."""

_painters: dict[Job, Painter] = {}
"""Of this process: its models are loaded for its first task only."""


def draw_with_ray(groups: Sequence[Group], job: Job) -> Iterator[Outcome]:
    """Draw all groups, `job.workers` at a time; yields each as it is done.

    Uses the Ray that is running: the one this process is connected to, else that of RAY_ADDRESS, else it
    starts one for the time being.

    Raises:
        ImpromptError: what a task could not do at all
    """
    ray: Any = importlib.import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        yield from _draw(ray, groups, job)
    finally:
        if ours:
            ray.shutdown()


def _draw(ray: Any, groups: Sequence[Group], job: Job) -> Iterator[Outcome]:
    needs_gpu = torch.device(job.device).type == "cuda"
    task = ray.remote(num_cpus=1, num_gpus=int(needs_gpu), max_retries=RETRIES)(_drawn)
    there = replace(job, folder=BenchmarkFolder(job.folder.path.resolve()))
    told = ray.put((there, Path.cwd()))
    waiting = list(reversed(range(len(groups))))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < job.workers:
            number = waiting.pop()
            running[task.remote(told, groups[number])] = number
        done, _ = ray.wait(list(running))
        for reference in done:
            yield Outcome(running.pop(reference), _fault(ray, reference))


def _fault(ray: Any, reference: Any) -> str:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, ImpromptError) else error from None
    except ray.exceptions.RayError as error:
        return f"Ray gave up on it ({type(error).__name__}) after {RETRIES} retries (out of memory?)"


def _drawn(told: tuple[Job, Path], group: Group) -> str:
    """A task: draw one group."""
    job, here = told
    if here.is_dir():
        os.chdir(here)  # the data's paths are as the command was given them
    if job not in _painters:
        _painters.clear()
        _painters[job] = Painter(job)
    return _painters[job].paint(group)
