"""Run tasks in worker processes: on this machine, or by Ray. Each worker does one task at a time.

    spec            what workers do, and how many there are
    processes       processes of this machine, which share out its GPUs
    ray_tasks       Ray, on one machine or on several that share the files

A worker that dies loses its current task. Another worker takes its place and does that task again.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Literal

from imprompt.errors import MissingExtra
from imprompt.runtime.workers.processes import run_in_processes
from imprompt.runtime.workers.ray_tasks import run_with_ray
from imprompt.runtime.workers.spec import LostTask, Result, Task, WorkerSpec

__all__ = ["LostTask", "WorkerSpec", "run_tasks"]


def run_tasks(
    tasks: Sequence[Task], spec: WorkerSpec[Task, Result], engine: Literal["processes", "ray"]
) -> Iterator[tuple[int, Result | LostTask]]:
    """Run all tasks; yield the number of each task and its result as it finishes, in any order.

    Raises:
        MissingExtra: Ray is not installed
        ImpromptError: a task raised it
    """
    if engine == "processes":
        return run_in_processes(tasks, spec)
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")
    return run_with_ray(tasks, spec)
