"""Who calls: a thread, or a task of asyncio within it."""

import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Caller(Generic[T]):
    """The thread and the task that run now, and what belongs to them.

    Attributes:
        thread: the thread
        task: the task of asyncio; None outside of any
        stack: what belongs to this caller, the latest last
    """

    def __init__(self) -> None:
        task = _running_task()
        self.thread = weakref.ref(threading.current_thread())
        self.task = None if task is None else weakref.ref(task)
        self.name = f"thread {threading.current_thread().name}" + (f", {task.get_name()}" if task else "")
        self.stack: list[T] = []

    @staticmethod
    def mine(callers: "Sequence[Caller[T]]") -> "Caller[T] | None":
        """Find the caller that runs now; None if it is none of these.

        What a finished task of this thread has left behind, or what was set outside of any task, serves all
        of the thread: a notebook runs each cell as a task of its own.
        """
        thread = threading.current_thread()
        here = [caller for caller in callers if caller.thread() is thread]
        if not here:
            return None
        task = _running_task()
        exact = [caller for caller in here if (caller.task() if caller.task else None) is task]
        exact = [caller for caller in exact if (caller.task is None) == (task is None)]
        left = [caller for caller in here if caller.is_over]
        return (exact or left or [None])[-1]

    @property
    def is_over(self) -> bool:
        """Whether its task has ended, or there never was one."""
        task = self.task() if self.task else None
        return task is None or task.done()


def _running_task() -> "asyncio.Task[object] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop
        return None
