"""Run tasks with Ray, on one machine or on several that share the files.

Ray starts a task again if its process or machine dies.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imprompt.errors import ImpromptError
from imprompt.runtime.workers.spec import LostTask, Result, Task, WorkerSpec

RETRIES = 3
"""Number of times that Ray starts a task again after its process has died."""

_prepared: dict[WorkerSpec[Any, Any], Callable[[Any], Any]] = {}
"""The prepared function of this process: its models are loaded for the first task only."""


def run_with_ray(
    tasks: Sequence[Task], spec: WorkerSpec[Task, Result]
) -> Iterator[tuple[int, Result | LostTask]]:
    """Run all tasks, `spec.size` at a time; yield the number of each task and its result as it finishes.

    This uses the Ray that this process is connected to, else the one of RAY_ADDRESS; else it starts one and
    shuts it down at the end.

    Raises:
        ImpromptError: a task raised it
    """
    ray: Any = importlib.import_module("ray")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False)
    try:
        yield from _run(ray, tasks, spec)
    finally:
        if started_here:
            ray.shutdown()


def _run(
    ray: Any, tasks: Sequence[Task], spec: WorkerSpec[Task, Result]
) -> Iterator[tuple[int, Result | LostTask]]:
    remote = ray.remote(num_cpus=1, num_gpus=int(spec.needs_gpu), max_retries=RETRIES)(_do)
    shared = ray.put((spec, Path.cwd()))
    waiting = list(reversed(range(len(tasks))))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < spec.size:
            number = waiting.pop()
            running[remote.remote(shared, tasks[number])] = number
        done, _ = ray.wait(list(running))
        for reference in done:
            yield running.pop(reference), _receive(ray, reference)


def _receive(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, ImpromptError) else error from None
    except ray.exceptions.RayError as error:
        return LostTask(f"{RETRIES + 1} Ray tasks died ({type(error).__name__})")


def _do(shared: tuple[WorkerSpec[Any, Any], Path], task: Any) -> Any:
    """Do one task, in a process of Ray."""
    spec, folder = shared
    if folder.is_dir():
        os.chdir(folder)  # the paths of the data are relative to where the command ran
    if spec not in _prepared:
        _prepared.clear()
        _prepared[spec] = spec.prepare(spec.job, spec.device)
    return _prepared[spec](task)
