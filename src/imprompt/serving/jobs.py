"""Jobs: what clients have asked for, what became of it, and the events that tell of it."""

import asyncio
import logging
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from imprompt.errors import ImpromptError
from imprompt.generation.run import JobResult
from imprompt.runtime.picture_files import save_picture
from imprompt.serving.encoding import encode_data_uri
from imprompt.serving.engine.base import EngineBase
from imprompt.serving.engine.picture_thread import PictureCanceled
from imprompt.serving.engine.pictures import PictureListener, PictureRequest
from imprompt.serving.job_errors import ServerStopping, UnknownJob, describe_error
from imprompt.serving.requests import RequestPlan

_log = logging.getLogger("imprompt.serving")

JobStatus = Literal["queued", "running", "done", "failed", "canceled"]

OVER = ("done", "failed", "canceled")
"""The states in which nothing more happens."""

_QUEUE_SECONDS = 1.0
"""How often a client in the queue hears of its position."""

_WITH_PREVIEWS = 10
"""How many of the latest finished jobs keep their previews, for clients that connect again."""

_SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}

_JOB_NAME = re.compile(r"([0-9a-f]{6})-[0-9a-f]{16}")
"""The id of a job: which run of the server it belongs to, and which of its jobs it is."""


class JobEvent(NamedTuple):
    """Something that happened to a job.

    Args:
        id: counts from 1; 0 for events that are not kept
        name: queued, started, step, preview, image, done, error or canceled
        data: see docs/serving.md
    """

    id: int
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class ServedPicture:
    """A picture that was made.

    Args:
        index: its place in the job
        path: its file
        seed: the seed that makes it again
        width: in pixels
        height: in pixels
        scale: the scale of its references, if the job varies it
    """

    index: int
    path: Path
    seed: int
    width: int
    height: int
    scale: float | int | None


class ServedJob:
    """One request of a client: its pictures, its state and its events.

    Args:
        plan: what to make
        client: whose it is
        folder: where its pictures are stored; it exists
    """

    def __init__(self, plan: RequestPlan, client: str, folder: Path) -> None:
        self.id = folder.name
        self.plan, self.client, self.folder = plan, client, folder
        self.status: JobStatus = "queued"
        self.pictures: list[ServedPicture] = []
        self.error: Exception | None = None
        self.created, self.started, self.ended = time.time(), 0.0, 0.0
        self.requests: list[PictureRequest] = []
        self.progress: dict[int, tuple[int, int]] = {}
        self.warnings: list[str] = []
        self._events: list[JobEvent] = []
        self._number = 0
        self._watchers: set[Callable[[], None]] = set()
        self._lock = threading.RLock()
        self.is_over = threading.Event()
        self.waiters = 0

    @property
    def timings(self) -> dict[str, float]:
        """Seconds in the queue and of computation, so far."""
        now = self.ended or time.time()
        start = self.started or now
        return {"queue_s": round(start - self.created, 3), "run_s": round(now - start, 3)}

    def add(self, name: str, **data: Any) -> None:
        """Append an event, and wake everybody who follows."""
        with self._lock:
            if self.status in OVER:
                return
            self._number += 1
            self._events.append(JobEvent(self._number, name, data))
            self._wake()

    def begin(self, index: int) -> None:
        """Note that a picture is computed from now on."""
        with self._lock:
            if self.status == "queued":
                self.status, self.started = "running", time.time()
            self.add("started", picture=index)

    def warn(self, message: str) -> None:
        """Add a warning, once."""
        with self._lock:
            if message in self.warnings:
                return
            self.warnings.append(message)
        self.add("warning", message=message)

    def end(self, status: JobStatus, name: str, **data: Any) -> bool:
        """Add the last event and set the state; return whether the job was not over before."""
        with self._lock:
            if self.status in OVER:
                return False
            self.ended = time.time()
            self.add(name, **data)
            self.status = status
            self._wake()
        self.is_over.set()
        return True

    def _wake(self) -> None:
        for wake in self._watchers:
            wake()

    def find_preview(self) -> str | None:
        """Return the latest preview as a data: URI; None if there is none."""
        with self._lock:
            previews = (event.data["image"] for event in reversed(self._events) if event.name == "preview")
            return next(previews, None)

    def drop_previews(self) -> None:
        """Forget the previews of a job that is over; they are most of its memory."""
        with self._lock:
            self._events = [event for event in self._events if event.name != "preview"]

    def events_after(self, number: int) -> list[JobEvent]:
        """Return all events with a larger id."""
        with self._lock:
            return [event for event in self._events if event.id > number]

    async def follow(
        self, after: int, find_place: Callable[[], Mapping[str, Any] | None]
    ) -> AsyncIterator[JobEvent]:
        """Yield events as they happen, until the job is over.

        Args:
            after: the id of the last event that the client knows
            find_place: returns position and eta_s while the job waits, else None
        """
        news, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        self._watchers.add(wake)
        place: Mapping[str, Any] | None = None
        try:
            while True:
                news.clear()
                is_over = self.status in OVER  # read before the events, so that none is missed
                for event in self.events_after(after):
                    after = event.id
                    yield event
                if is_over:
                    return
                if (now := find_place()) is not None and now != place:
                    place = now
                    yield JobEvent(0, "queued", now)
                try:
                    await asyncio.wait_for(news.wait(), _QUEUE_SECONDS)
                except TimeoutError:
                    continue
        finally:
            self._watchers.discard(wake)


class JobStore:
    """All jobs of a server; finished ones are kept for a while.

    Args:
        folder: for the pictures
        engine: makes them
        most: how many finished jobs are kept
        hold: returns a context that keeps assets while a job needs them
        on_end: called with every job that is over
    """

    def __init__(
        self,
        folder: Path,
        engine: EngineBase[Any],
        most: int,
        hold: Callable[[Sequence[str]], Any],
        on_end: Callable[[ServedJob], None] = lambda job: None,
    ) -> None:
        self._folder, self._engine, self._most = folder, engine, most
        self._hold, self._on_end = hold, on_end
        self._jobs: dict[str, ServedJob] = {}
        self._holds: dict[str, ExitStack] = {}
        self._run = secrets.token_hex(3)
        self._lock = threading.Lock()

    def find(self, name: str) -> ServedJob:
        """Return a job by its id.

        Raises:
            UnknownJob: there is none (any more)
        """
        job = self._jobs.get(name)
        if job is None:
            run = _JOB_NAME.fullmatch(name)
            raise UnknownJob(name, is_of_earlier_run=run is not None and run[1] != self._run)
        return job

    def holds(self, job: ServedJob) -> bool:
        """Whether a job is kept still."""
        return job.id in self._jobs

    @property
    def unfinished(self) -> list[ServedJob]:
        """The jobs that wait or run."""
        return [job for job in list(self._jobs.values()) if job.status not in OVER]

    def submit(self, plan: RequestPlan, client: str) -> ServedJob:
        """Put a job into the queue.

        Raises:
            QueueFull: there is too much work already
        """
        folder = self._folder / f"{self._run}-{secrets.token_hex(8)}"
        job = ServedJob(plan, client, folder)
        job.requests = [
            PictureRequest(
                job=picture.job,
                served=plan.served,
                client=client,
                listener=self._listen(job, index),
                previews=plan.request.previews,
            )
            for index, picture in enumerate(plan.pictures)
        ]
        holds = ExitStack()
        holds.enter_context(self._hold(plan.assets))
        with self._lock:
            self._jobs[job.id], self._holds[job.id] = job, holds
        try:
            folder.mkdir()
            self._engine.submit(job.requests)
        except BaseException:
            self._forget(job)
            raise
        self._drop_old()
        return job

    def cancel(self, job: ServedJob) -> None:
        """Cancel a job; what is computed of it stops before the next step."""
        if job.end("canceled", "canceled", timings=job.timings):
            self._end(job)
        self._engine.cancel(lambda request: any(request is own for own in job.requests))

    def refuse_waiting(self) -> None:
        """End the jobs of which every picture waits, because the server is about to stop."""
        for job in self.unfinished:
            if all(self._engine.position(request) is not None for request in job.requests):
                self._stop(job)

    def abort_all(self) -> None:
        """End all jobs, because the server stops now."""
        for job in self.unfinished:
            self._stop(job)

    def _stop(self, job: ServedJob) -> None:
        self._fail(job, ServerStopping())

    def find_place(self, job: ServedJob) -> dict[str, Any] | None:
        """Return position and eta_s of a job that waits; None if it does not."""
        if job.status != "queued":
            return None
        position = self._engine.position(job.requests[0])
        return None if position is None else {"position": position, "eta_s": self.estimate(job)}

    def estimate(self, job: ServedJob) -> float:
        """Estimate the seconds until a job that waits is done."""
        return round(self._engine.estimate_seconds(), 1)

    def _listen(self, job: ServedJob, index: int) -> PictureListener:
        def start() -> None:
            job.begin(index)

        def step(done: int, steps: int) -> None:
            job.progress[index] = done, steps
            pace = (time.time() - job.started) / max(1, sum(number for number, _ in job.progress.values()))
            job.add("step", picture=index, step=done, steps=steps, s_per_step=round(pace, 4))

        def preview(done: int, picture: Image.Image) -> None:
            job.add("preview", picture=index, step=done, image=encode_data_uri(picture, "WEBP"))

        return PictureListener(
            on_start=start,
            on_step=step,
            on_preview=preview,
            on_picture=lambda result: self._save(job, index, result),
            on_error=lambda error: self._fail(job, error),
            on_warning=job.warn,
        )

    def _save(self, job: ServedJob, index: int, result: JobResult) -> None:
        request = job.plan.request
        path = job.folder / f"{index}{_SUFFIXES[request.format]}"
        save_picture(result.picture, path, quality=request.quality)
        scale = job.plan.pictures[index].scale
        picture = ServedPicture(index, path, result.job.seed, *result.picture.size, scale)
        job.pictures = sorted([*job.pictures, picture], key=lambda one: one.index)
        job.add("image", **describe_picture(job, picture))
        if len(job.pictures) == len(job.plan.pictures) and job.end("done", "done", timings=job.timings):
            self._end(job)

    def _fail(self, job: ServedJob, error: Exception) -> None:
        """End a job with the first fault of one of its pictures; the others are canceled."""
        if isinstance(error, PictureCanceled):
            status, name, data = "canceled", "canceled", {"timings": job.timings}
        else:
            job.error = error
            status, name, data = "failed", "error", describe_error(error)
            if not isinstance(error, ImpromptError):
                _log.error("job %s failed", job.id, exc_info=error)
        if job.end(status, name, **data):
            self._end(job)
            self._engine.cancel(lambda request: any(request is own for own in job.requests))

    def _end(self, job: ServedJob) -> None:
        with self._lock:
            holds = self._holds.pop(job.id, None)
        if holds is not None:
            holds.close()
        self._on_end(job)

    def _forget(self, job: ServedJob) -> None:
        with self._lock:
            self._jobs.pop(job.id, None)
            holds = self._holds.pop(job.id, None)
        if holds is not None:
            holds.close()
        for path in job.folder.glob("*"):
            path.unlink(missing_ok=True)
        if job.folder.is_dir():
            job.folder.rmdir()

    def _drop_old(self) -> None:
        with self._lock:
            over = [job for job in self._jobs.values() if job.status in OVER]
        for job in over[: max(0, len(over) - self._most)]:
            self._forget(job)
        for job in over[:-_WITH_PREVIEWS]:
            job.drop_previews()


def describe_picture(job: ServedJob, picture: ServedPicture) -> dict[str, Any]:
    """Return the data of an `image` event."""
    described: dict[str, Any] = {
        "picture": picture.index,
        "url": f"/api/jobs/{job.id}/pictures/{picture.index}",
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
    }
    return described | ({"scale": picture.scale} if job.plan.request.strip else {})
