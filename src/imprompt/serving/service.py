"""The server without its routes: settings, models, engine, pictures and jobs, as one thing."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from imprompt.errors import ImpromptError
from imprompt.serving.access import Access
from imprompt.serving.assets import Asset, AssetStore
from imprompt.serving.engine.loop import Engine
from imprompt.serving.engine.models import ModelStore
from imprompt.serving.engine.ray_engine import RayEngine
from imprompt.serving.jobs import JobStore, ServedJob
from imprompt.serving.metrics import Metrics
from imprompt.serving.requests import GenerationRequest, plan_request
from imprompt.serving.settings import ServerSettings

EXAMPLES = Path(__file__).parent / "examples"
"""Three characters, drawn by `imprompt mini draw`, that the embedded model never saw."""

_STUCK = 60.0
"""Seconds without a turn of the engine's loop after which the server is no longer ready."""

_QUIET = 2.0
"""Seconds without work after which the server prepares for more."""

_make_folder = partial(tempfile.TemporaryDirectory, prefix="imprompt-serve-")

DrawCharacter = Callable[[int], Image.Image]
"""Draws a new character from a seed."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What is about this machine, and not about models.

    Args:
        access: who may come in
        page: a folder with an index.html, served at "/"; None: no page
        draw: draws new characters; None: the package for it is not installed
        stuck_seconds: after how many seconds without a sign of the engine the server is not ready
        folder: an empty folder for pictures; None: a temporary one
        restarts: how many servers were killed before this one
    """

    access: Access = field(default_factory=Access)
    page: Path | None = None
    draw: DrawCharacter | None = None
    stuck_seconds: float | int = _STUCK
    folder: Path | None = None
    restarts: int = 0


class Service:
    """Everything behind the routes.

    Args:
        settings: models and limits
        options: see there
    """

    def __init__(self, settings: ServerSettings, options: ServerOptions) -> None:
        self.settings, self.options = settings, options
        self.metrics = Metrics()
        self._files = contextlib.ExitStack()
        folder = options.folder or self._files.enter_context(_make_folder())
        folders = [Path(folder, name) for name in ("assets", "jobs")]
        for folder in folders:
            folder.mkdir()
        self.engine = self._make_engine()
        self.assets = AssetStore(folders[0], settings.limits)
        self.jobs = JobStore(
            folders[1], self.engine, settings.limits.finished_jobs, self.assets.hold, self.metrics.observe_job
        )
        self.metrics.watch(self.engine, options.restarts)
        self.is_draining = False
        self.is_warm = False
        self.examples: list[tuple[str, Asset]] = []

    def _make_engine(self) -> Engine | RayEngine:
        settings, metrics = self.settings, self.metrics
        queue_seconds = settings.limits.queue_seconds
        if settings.ray is not None:
            return RayEngine(settings, queue_seconds)
        store = ModelStore(
            settings.loaded_models, settings.batching, lambda event: metrics.events.labels(event).inc()
        )
        return Engine(store, settings.batching, queue_seconds=queue_seconds, on_step=metrics.observe_step)

    def start(self) -> None:
        """Start the engine, and store the example pictures."""
        self.engine.start()
        for path in sorted(EXAMPLES.glob("*.png")):
            self.examples.append((path.stem, self.assets.add_now(path.read_bytes(), path.name)))

    async def warm_up(self) -> None:
        """Load the first model by one small picture, so that the first client does not wait for it.

        Raises:
            ImpromptError: the model cannot be loaded
        """
        served = self.settings.models[0]
        references = [{"images": self.examples[0][1].id}] if served.adapters and self.examples else []
        request = GenerationRequest.model_validate({"steps": 1, "seed": 0, "references": references})
        job = await self.submit(request, "(warm-up)")
        await asyncio.to_thread(job.is_over.wait)
        if isinstance(job.error, ImpromptError):
            raise job.error
        self.is_warm = job.status == "done"

    async def prime(self) -> None:
        """Run one step in every batch size, when nothing else is to do: the first call of a size is slow."""
        most = min(self.settings.batching.pictures, self.settings.limits.count)
        for count in (2**power for power in range(1, most.bit_length())):
            await self._wait_for_quiet()
            job = await self.submit(GenerationRequest(steps=1, seed=0, count=count), "(warm-up)")
            await asyncio.to_thread(job.is_over.wait)

    async def _wait_for_quiet(self) -> None:
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < _QUIET:
            await asyncio.sleep(_QUIET / 10)
            if self.engine.running or self.engine.waiting:
                quiet_since = time.monotonic()

    async def submit(self, request: GenerationRequest, client: str) -> ServedJob:
        """Check a request and put it into the queue.

        Raises:
            ImpromptError: a setting or picture that is not allowed, or a full queue
        """
        plan = await plan_request(request, self.settings, self.assets)
        return self.jobs.submit(plan, client)

    def find_fault(self) -> str | None:
        """Return why the server takes no work now; None if it does."""
        if self.is_draining:
            return "the server is about to stop"
        if not self.engine.is_alive:
            return "the engine is not running"
        if time.monotonic() - self.engine.beat > self.options.stuck_seconds:
            return "the engine gives no sign"
        return None if self.is_warm else "the model is being loaded"

    async def drain(self, seconds: float | int) -> None:
        """Refuse new work, answer what waits with an error, and let what runs finish in time."""
        self.is_draining = True
        self.jobs.refuse_waiting()
        end = time.monotonic() + seconds
        while self.jobs.unfinished and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.jobs.abort_all()

    def close(self) -> None:
        """Stop the engine and remove all files."""
        self.is_draining = True
        self.jobs.abort_all()
        self.engine.close()
        self._files.close()
