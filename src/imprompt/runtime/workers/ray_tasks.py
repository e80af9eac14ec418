"""Tasks done by Ray, on one machine or on many that share the files.

A task whose process or machine dies is started again by Ray.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imprompt.errors import ImpromptError
from imprompt.runtime.workers.crew import Crew, Lost, Made, Task

RETRIES = 3
"""How often Ray starts a task again whose process has died."""

_prepared: dict[Crew[Any, Any], Callable[[Any], Any]] = {}
"""Of this process: its models are loaded for its first task only."""


def done_by_ray(tasks: Sequence[Task], crew: Crew[Task, Made]) -> Iterator[tuple[int, Made | Lost]]:
    """Do all tasks, `crew.size` at a time; yields the number of each as it is done, and what was made.

    Uses the Ray that is running: the one this process is connected to, else that of RAY_ADDRESS, else it
    starts one for the time being.

    Raises:
        ImpromptError: what a task could not do
    """
    ray: Any = importlib.import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        yield from _done(ray, tasks, crew)
    finally:
        if ours:
            ray.shutdown()


def _done(ray: Any, tasks: Sequence[Task], crew: Crew[Task, Made]) -> Iterator[tuple[int, Made | Lost]]:
    remote = ray.remote(num_cpus=1, num_gpus=int(crew.needs_gpu), max_retries=RETRIES)(_do)
    told = ray.put((crew, Path.cwd()))
    waiting = list(reversed(range(len(tasks))))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < crew.size:
            number = waiting.pop()
            running[remote.remote(told, tasks[number])] = number
        done, _ = ray.wait(list(running))
        for reference in done:
            yield running.pop(reference), _received(ray, reference)


def _received(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, ImpromptError) else error from None
    except ray.exceptions.RayError as error:
        return Lost(f"{RETRIES + 1} Ray tasks died ({type(error).__name__})")


def _do(told: tuple[Crew[Any, Any], Path], task: Any) -> Any:
    """In a process of Ray's: do one task."""
    crew, here = told
    if here.is_dir():
        os.chdir(here)  # the data's paths are as the command was given them
    if crew not in _prepared:
        _prepared.clear()
        _prepared[crew] = crew.prepare(crew.job, crew.device)
    return _prepared[crew](task)
