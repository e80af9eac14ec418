"""What workers do, and how many there are."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Crew(Generic[Task, Made]):
    """Workers of one kind; picklable and hashable.

    Attributes:
        prepare: (job, device) → what does a task; called once by each worker, it may load models. A module's
            own function, so that workers find it
        job: what a worker must know; equal jobs are prepared for once
        device: where models compute; several GPUs are shared out
        size: how many work at a time
    """

    prepare: Callable[[Any, str], Callable[[Task], Made]]
    job: Hashable
    device: str
    size: int

    @property
    def needs_gpu(self) -> bool:
        """Whether each worker computes on a GPU."""
        return torch.device(self.device).type == "cuda"


class Lost(NamedTuple):
    """A task that was given up: whoever took it on died."""

    reason: str
