"""What workers do, and how many there are."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkerSpec(Generic[Task, Result]):
    """Workers of one kind; picklable and hashable.

    Attributes:
        prepare: (job, device) → the function that does a task. Each worker calls it once, so it may load
            models. It must be a function of a module, so that workers can import it
        job: what every worker needs to know; workers prepare once for equal jobs
        device: where models compute; several GPUs are shared out
        size: the number of workers
    """

    prepare: Callable[[Any, str], Callable[[Task], Result]]
    job: Hashable
    device: str
    size: int

    @property
    def needs_gpu(self) -> bool:
        """Whether each worker computes on a GPU."""
        return torch.device(self.device).type == "cuda"


class LostTask(NamedTuple):
    """A task that was given up because every worker that tried it died."""

    reason: str
