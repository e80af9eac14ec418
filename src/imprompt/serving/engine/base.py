"""What every engine has: a bounded queue of pictures, the pictures under way, and how long they will take."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from imprompt.errors import ImpromptError
from imprompt.serving.engine.picture_thread import PictureCanceled
from imprompt.serving.engine.pictures import PictureRequest
from imprompt.serving.engine.queue import FairQueue

FIRST_GUESS = 0.02
"""Seconds of one row of a U-Net call, before any was timed."""

_SMOOTHING = 0.1
"""The weight of the latest observation in the running mean of seconds per row."""


class EngineFailure(ImpromptError):
    """The engine failed, and with it everything that it was computing; a later attempt may succeed."""


class QueueFull(ImpromptError):
    """The queue holds as much work as it may.

    Args:
        wait: seconds after which there will probably be room
    """

    def __init__(self, wait: float | int) -> None:
        super().__init__(f"the server is busy: try again in {wait:.0f} s")
        self.wait = wait


class ActivePicture(Protocol):
    """A picture in the making."""

    request: PictureRequest
    rows: int
    """The rows of U-Net calls that were computed for it."""

    def cancel(self) -> None:
        """End it before its next step."""
        ...


Active = TypeVar("Active", bound=ActivePicture)


class EngineBase(Generic[Active]):
    """The queue of an engine.

    Args:
        queue_seconds: the most seconds of work that may wait
    """

    def __init__(self, queue_seconds: float | int) -> None:
        self._queue_seconds = queue_seconds
        self._queue = FairQueue()
        self._active: list[Active] = []
        self._changed = threading.Condition()
        self._has_signal = False
        self._seconds_per_row: dict[str, float] = defaultdict(lambda: FIRST_GUESS)

    @property
    def waiting(self) -> int:
        """The number of pictures that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """The number of pictures that are computed."""
        return len(self._active)

    def estimate_seconds(self) -> float:
        """Estimate how long the work takes that waits or is under way."""
        with self._changed:
            left = [(active.request, active.request.rows - active.rows) for active in self._active]
            left += [(request, request.rows) for request in self._queue]
            paces = self._seconds_per_row
            return sum((max(0, rows) * paces[request.served.name] for request, rows in left), 0.0)

    def estimate(self, request: PictureRequest) -> float:
        """Estimate the seconds of one picture, alone."""
        return request.rows * self._seconds_per_row[request.served.name]

    def position(self, request: PictureRequest) -> int | None:
        """Return how many pictures will be taken before this one; None if it waits no more."""
        with self._changed:
            return next((place for place, other in enumerate(self._queue) if other is request), None)

    def check_room(self) -> None:
        """Refuse work that could not be taken, before anything of it is read.

        Raises:
            QueueFull: there is too much work already
        """
        with self._changed:
            waiting = sum(map(self.estimate, self._queue), 0.0)
        if waiting > self._queue_seconds:
            raise QueueFull(waiting - self._queue_seconds)

    def submit(self, requests: Sequence[PictureRequest]) -> None:
        """Put pictures into the queue, all of them or none.

        Raises:
            QueueFull: there is too much work already; pictures are always taken while nothing waits
        """
        with self._changed:
            before = sum(map(self.estimate, self._queue), 0.0)
            ahead = before + sum(map(self.estimate, requests))
            if before and ahead > self._queue_seconds:
                raise QueueFull(ahead - self._queue_seconds)
            for request in requests:
                self._queue.add(request)
            self._signal()

    def cancel(self, is_unwanted: Callable[[PictureRequest], bool]) -> None:
        """Cancel pictures: those in the queue now, those in the making before their next step."""
        with self._changed:
            removed = self._queue.remove(is_unwanted)
            for active in self._active:
                if is_unwanted(active.request):
                    active.cancel()
            self._signal()
        for request in removed:
            request.listener.on_error(PictureCanceled())

    def _signal(self) -> None:
        with self._changed:
            self._has_signal = True
            self._changed.notify_all()

    def _observe_pace(self, model: str, seconds_per_row: float) -> None:
        """Include an observation in the running mean."""
        before = self._seconds_per_row.get(model, seconds_per_row)
        self._seconds_per_row[model] = before + _SMOOTHING * (seconds_per_row - before)


def make_failure(cause: BaseException | None) -> EngineFailure:
    """Return the error of a picture that was lost with what computed it."""
    failure = EngineFailure("the engine failed while it made this picture; try again")
    failure.__cause__ = cause
    return failure
