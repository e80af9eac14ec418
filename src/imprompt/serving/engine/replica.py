"""One engine on one device of a Ray cluster: it makes pictures for a server that runs elsewhere."""

import asyncio
import math
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from imprompt.errors import ImpromptError
from imprompt.generation.run import JobResult
from imprompt.inputs.crop import Crop
from imprompt.serving.engine.base import EngineFailure
from imprompt.serving.engine.loop import Engine
from imprompt.serving.engine.models import ModelStore
from imprompt.serving.engine.pictures import PictureListener, PictureRequest
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import ServerSettings

_HANG_SECONDS = 600.0
"""Seconds without a turn of the engine's loop after which Ray replaces a replica."""


class PictureOrder(NamedTuple):
    """A picture that a replica makes, with the contents of its files.

    Args:
        job: the settings of its job
        model: the name of its model
        client: whose it is
        previews: how many previews are drawn
        folder: where the files are on the server's machine
        files: their contents by name
    """

    job: Mapping[str, Any]
    model: str
    client: str
    previews: int
    folder: str
    files: Mapping[str, bytes]

    def unpack(self, folder: Path) -> RequestJob:
        """Write the files into a folder of this machine; return the job that reads them there."""
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

        def move(path: str) -> str:
            here = Path(path)
            return str(folder / here.name) if str(here.parent) == self.folder else path

        return RequestJob.model_validate(self.job, context={"move": move})


class PictureEvent(NamedTuple):
    """Something that happened to a picture.

    Args:
        name: start, step, preview, warning, picture or error
        values: the arguments of the listener; of an error, whose fault it is and its message
    """

    name: str
    values: tuple[Any, ...] = ()


class Replica:
    """Makes pictures; Ray calls the methods.

    Args:
        settings: those of the server
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._store = ModelStore(settings.loaded_models, settings.batching)
        # The server bounds the queue.
        self._engine = Engine(self._store, settings.batching, queue_seconds=math.inf)
        self._engine.start()

    async def make(self, order: PictureOrder) -> AsyncIterator[PictureEvent]:
        """Make a picture, and yield what happens until it is done or has failed."""
        loop, news = asyncio.get_running_loop(), asyncio.Queue[PictureEvent]()

        def report(name: str, *values: Any) -> None:
            loop.call_soon_threadsafe(news.put_nowait, PictureEvent(name, values))

        with tempfile.TemporaryDirectory(prefix="imprompt-replica-") as folder:
            request = self._read_order(order, Path(folder), report)
            self._engine.submit([request])
            try:
                while (event := await news.get()).name not in ("picture", "error"):
                    yield event
                yield event
            finally:  # Ray ends the generator here if the server cancels the picture.
                self._engine.cancel(lambda one: one is request)

    async def list_views(self, order: PictureOrder, crop: Crop | str) -> list[Image.Image]:
        """Return what the image encoder of the job's adapter sees of its first reference."""
        with tempfile.TemporaryDirectory(prefix="imprompt-replica-") as folder:
            job = order.unpack(Path(folder))
            served = self._settings.find_model(order.model)
            assert served is not None
            return await asyncio.to_thread(self._engine.list_views, served, job, crop)

    def check_health(self) -> None:
        """Raise an exception if Ray is to replace this replica.

        Raises:
            EngineFailure: the engine hangs
        """
        if time.monotonic() - self._engine.beat > _HANG_SECONDS:
            raise EngineFailure("the engine gives no sign")

    def _read_order(self, order: PictureOrder, folder: Path, report: Any) -> PictureRequest:
        served = self._settings.find_model(order.model)
        assert served is not None

        def end(result: JobResult) -> None:
            report(
                "picture", result.picture, {name: self._store.find_modes(name) for name in self._store.names}
            )

        listener = PictureListener(
            on_start=lambda: report("start"),
            on_step=lambda done, steps: report("step", done, steps),
            on_preview=lambda done, picture: report("preview", done, picture),
            on_picture=end,
            on_error=lambda error: report("error", *_describe(error)),
            on_warning=lambda message: report("warning", message),
        )
        return PictureRequest(
            job=order.unpack(folder),
            served=served,
            client=order.client,
            listener=listener,
            previews=order.previews,
        )


def _describe(error: Exception) -> tuple[str, str]:
    """Return whose fault an error is, and its message: exceptions of libraries may not travel."""
    if isinstance(error, EngineFailure):
        return "engine", str(error)
    if isinstance(error, ImpromptError):
        return "request", str(error)
    return "defect", f"{type(error).__name__}: {error}"
