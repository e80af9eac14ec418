"""A thread that makes one picture, and computes only while it is its turn.

The engine gives turns. A turn ends where the picture needs the U-Net: the engine collects these calls, runs
them as one, and gives the next turn with the result. So one thread computes at any time, and the library's
own pipelines run unchanged.

    preparing → waiting → (turn) → calling → (turn) → calling → ... → saving → finished
"""

import threading
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from imprompt.serving.engine.denoiser_calls import DenoiserCall

Status = Literal["preparing", "waiting", "turn", "calling", "saving", "finished"]


class PictureCanceled(Exception):
    """A picture is not wanted any more; raised inside its thread."""


class PictureThread:
    """One picture in the making.

    Args:
        make: makes the picture; it reads its files, calls `take_turn`, computes, and calls `end_turn` to save
        notify: called from the thread when it waits for its first turn, and at its end

    Attributes:
        status: see above
        call: the U-Net call that it waits for
    """

    def __init__(self, make: Callable[["PictureThread"], None], notify: Callable[[], None]) -> None:
        self._make, self._notify = make, notify
        self.status: Status = "preparing"
        self.call: DenoiserCall | None = None
        self._result: Tensor | None = None
        self._reason: Exception | None = None
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="picture", daemon=True)

    def start(self) -> None:
        """Begin to prepare."""
        self._thread.start()

    def cancel(self, reason: Exception | None = None) -> None:
        """Let the thread raise an exception at its next turn, or before it saves."""
        self._reason = reason or PictureCanceled()

    @property
    def is_canceled(self) -> bool:
        """Whether it will end at its next turn."""
        return self._reason is not None

    # In the engine's thread

    def resume(self, result: Tensor | None = None) -> None:
        """Give the thread a turn, and return when it ends.

        Args:
            result: the output of the U-Net call that it waits for
        """
        self._result = result
        self._turn.release()
        self._pause.acquire()

    # In the thread itself

    def check(self) -> None:
        """Raise the reason for which the picture is canceled, if it is."""
        if self._reason is not None:
            raise self._reason

    def take_turn(self) -> None:
        """Wait for the first turn."""
        self.status = "waiting"
        self._notify()
        self._await_turn()

    def call_denoiser(self, call: DenoiserCall) -> Tensor:
        """End the turn with a call of the U-Net; return its output in the next turn."""
        self.call, self.status = call, "calling"
        self._pause.release()
        self._await_turn()
        result, self.call, self._result = self._result, None, None
        assert result is not None
        return result

    def end_turn(self) -> None:
        """End the last turn; what follows runs beside the other threads."""
        self.check()
        self.status = "saving"
        self._pause.release()

    def _await_turn(self) -> None:
        self._turn.acquire()
        self.status = "turn"
        self.check()

    def _run(self) -> None:
        try:
            self._make(self)
        finally:
            has_turn, self.status, self.call = self.status == "turn", "finished", None
            if has_turn:
                self._pause.release()
            self._notify()
