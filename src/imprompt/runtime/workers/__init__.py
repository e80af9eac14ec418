"""Tasks done elsewhere, one at a time by each worker: by other processes of this machine, or by Ray.

    crew            what workers do, and how many there are
    processes       on this machine; several GPUs are shared out
    ray_tasks       on one machine, or on many that share the files

A worker that is killed loses the task that it was on; another takes its place and does that task again.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Literal

from imprompt.errors import MissingExtra
from imprompt.runtime.workers.crew import Crew, Lost, Made, Task
from imprompt.runtime.workers.processes import done_by_processes
from imprompt.runtime.workers.ray_tasks import done_by_ray

__all__ = ["Crew", "Lost", "done_elsewhere"]


def done_elsewhere(
    tasks: Sequence[Task], crew: Crew[Task, Made], engine: Literal["processes", "ray"]
) -> Iterator[tuple[int, Made | Lost]]:
    """Do all tasks; yields the number of each as it is done, in any order, and what was made.

    Raises:
        MissingExtra: Ray is not installed
        ImpromptError: what a worker could not do
    """
    if engine == "processes":
        return done_by_processes(tasks, crew)
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")
    return done_by_ray(tasks, crew)
