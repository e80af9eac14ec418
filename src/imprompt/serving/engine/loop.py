"""The engine's loop: take pictures from the queue, run one U-Net call for all of them, repeat."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from imprompt.inputs.crop import Crop
from imprompt.serving.engine.base import EngineBase, make_failure
from imprompt.serving.engine.denoiser_calls import UNetCall
from imprompt.serving.engine.models import ModelStore
from imprompt.serving.engine.picture_thread import PictureThread
from imprompt.serving.engine.pictures import PictureRequest, make_picture
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import Batching, ServedModel

_log = logging.getLogger("imprompt.serving")

_LAST_TURN = 10.0
"""The longest time that the last turn gets when the engine is closed."""

_PAUSE = 0.1
"""Seconds between a failure of the loop and its next turn, which may fail again."""

_BEAT = 0.5
"""Seconds after which a loop without work looks around."""


class StepReport(NamedTuple):
    """One U-Net call of the engine.

    Args:
        model: the name of the model
        rows: rows that somebody needs
        bucket: rows that were computed
        seconds: the time that it took
    """

    model: str
    rows: int
    bucket: int
    seconds: float


class _Active:
    """A picture in the making, and the rows of U-Net calls that were computed for it."""

    def __init__(self, request: PictureRequest, thread: PictureThread) -> None:
        self.request, self.thread, self.rows = request, thread, 0

    def cancel(self) -> None:
        self.thread.cancel()


class Engine(EngineBase[_Active]):
    """Makes pictures with one computing thread.

    Args:
        store: the models
        batching: how many pictures are computed at once
        queue_seconds: the most seconds of work that may wait
        on_step: called after every U-Net call

    Attributes:
        beat: when the loop last turned, in seconds of `time.monotonic`
        failures: how often the loop has failed and begun anew
    """

    def __init__(
        self,
        store: ModelStore,
        batching: Batching,
        *,
        queue_seconds: float | int,
        on_step: Callable[[StepReport], None] = lambda report: None,
    ) -> None:
        super().__init__(queue_seconds)
        self.store, self._batching, self._on_step = store, batching, on_step
        self._is_open = True
        self._most_together: dict[object, int] = {}
        self.beat = time.monotonic()
        self.failures = 0
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._guard = threading.Thread(target=self._keep_running, name="engine guard", daemon=True)

    def start(self) -> None:
        """Start the computing thread, and the one that starts it again if it dies."""
        self._guard.start()

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        with self._changed:
            self._is_open = False
        self.cancel(lambda request: True)
        self._guard.join(_LAST_TURN)

    # For other threads

    @property
    def is_alive(self) -> bool:
        """Whether the computing thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def list_views(self, served: ServedModel, job: RequestJob, crop: Crop | str) -> list[Image.Image]:
        """Return what the image encoder of a job's adapter sees of its first reference.

        Raises:
            ImpromptError: a model or a picture cannot be loaded
        """
        return self.store.list_views(served, job, crop)

    # In the guard's thread

    @property
    def _has_work(self) -> bool:
        return self._is_open or bool(self._active) or len(self._queue) > 0

    def _keep_running(self) -> None:
        """Run the computing thread, and start it again whenever it has died."""
        while self._has_work:
            self._failure = None
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
            self._thread.join()
            if self._has_work:
                self.failures += 1
                _log.error("the engine failed, and begins anew", exc_info=self._failure)
                self._abandon(self._failure)
                time.sleep(_PAUSE)

    def _abandon(self, error: BaseException | None) -> None:
        """End all pictures that are under way, with an error; those that wait are made by the next thread."""
        for active in self._active:
            active.thread.cancel(make_failure(error))

    # In the computing thread

    def _run(self) -> None:
        try:
            while self._has_work:
                self._turn()
        except BaseException as error:  # whatever happened: the guard goes on
            self._failure = error

    def _turn(self) -> None:
        """Take pictures from the queue, and bring all of them to their next U-Net call."""
        self.beat = time.monotonic()
        self._admit()
        for active in list(self._active):
            if active.thread.status == "waiting":
                active.thread.resume()
        for active in [one for one in self._active if one.thread.is_canceled]:
            if active.thread.status == "calling":
                active.thread.resume()
        for group in self._group_calls():
            self._run_group(group)
        self._active = [
            active for active in self._active if active.thread.status not in ("saving", "finished")
        ]
        self._await_work()

    def _admit(self) -> None:
        with self._changed:
            while len(self._queue) and len(self._active) < self._batching.pictures:
                self._start(self._queue.take())

    def _start(self, request: PictureRequest) -> None:
        thread = PictureThread(lambda thread: make_picture(request, self.store, thread), self._signal)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            request.listener.on_error(make_failure(error))
            return
        self._active.append(_Active(request, thread))

    def _group_calls(self) -> Iterator[list[_Active]]:
        """Yield pictures whose calls can be put together, at most as many as are computed at once."""
        groups: dict[object, list[_Active]] = defaultdict(list)
        for active in self._active:
            if active.thread.status == "calling":
                call = _call_of(active)
                groups[id(call.denoiser), call.key].append(active)
        for kind, group in groups.items():
            most = self._most_together.get(kind, self._batching.pictures)
            yield from (group[start : start + most] for start in range(0, len(group), most))

    def _run_group(self, group: Sequence[_Active]) -> None:
        """Run one U-Net call for all of a group, and give each its turn with its output."""
        try:
            outputs = self._denoise(group)
        except Exception as error:
            if len(group) > 1:  # One picture's fault, or too little memory for all, must not end the others.
                if isinstance(error, torch.OutOfMemoryError):
                    call = _call_of(group[0])
                    self._most_together[id(call.denoiser), call.key] = max(1, len(group) // 2)
                for active in group:
                    self._run_group([active])
                return
            group[0].thread.cancel(error)
            outputs = [None]
        for active, output in zip(group, outputs, strict=True):
            active.thread.resume(output)

    def _denoise(self, group: Sequence[_Active]) -> list[Tensor]:
        calls = [_call_of(active) for active in group]
        start = time.perf_counter()
        outputs = calls[0].denoiser.run(calls)
        rows = sum(call.rows for call in calls)
        name, seconds = group[0].request.served.name, time.perf_counter() - start
        self._observe_pace(name, seconds / rows)
        for active, call in zip(group, calls, strict=True):
            active.rows += call.rows
        self._on_step(StepReport(name, rows, calls[0].denoiser.bucket(rows), seconds))
        return outputs

    def _await_work(self) -> None:
        """Sleep while every picture is prepared by its own thread, or there is none."""
        with self._changed:
            is_busy = any(active.thread.status != "preparing" for active in self._active)
            has_room = len(self._active) < self._batching.pictures and len(self._queue)
            if not (is_busy or has_room or self._has_signal):
                self._changed.wait(_BEAT)
            self._has_signal = False


def _call_of(active: _Active) -> UNetCall:
    call = active.thread.call
    assert call is not None
    return call
