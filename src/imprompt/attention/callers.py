"""The caller of the current code: a thread, or a task of asyncio within it."""

import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Caller(Generic[T]):
    """A thread and its task of asyncio, and a stack of objects that belong to them.

    Attributes:
        thread: the thread
        task: the task of asyncio; None outside of tasks
        stack: the objects of this caller, the latest last
    """

    def __init__(self) -> None:
        task = _running_task()
        self.thread = weakref.ref(threading.current_thread())
        self.task = None if task is None else weakref.ref(task)
        self.name = f"thread {threading.current_thread().name}" + (f", {task.get_name()}" if task else "")
        self.stack: list[T] = []

    @staticmethod
    def find_current(callers: "Sequence[Caller[T]]") -> "Caller[T] | None":
        """Find the current caller among these; None if it is not there.

        Objects that a finished task of this thread has left, or that were set outside of tasks, are for all
        of the thread: a notebook runs each cell as a task of its own.
        """
        thread = threading.current_thread()
        here = [caller for caller in callers if caller.thread() is thread]
        if not here:
            return None
        task = _running_task()
        exact = [caller for caller in here if (caller.task() if caller.task else None) is task]
        exact = [caller for caller in exact if (caller.task is None) == (task is None)]
        finished = [caller for caller in here if caller.is_over]
        return (exact or finished or [None])[-1]

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
