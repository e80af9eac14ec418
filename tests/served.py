"""A server of the toy model, for the tests: settings, an engine that is fed by hand, a live server."""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

import tiny
from conftest import ToyModel
from imprompt.generation.job import Job
from imprompt.generation.run import JobModels, JobResult, load_models, run_job
from imprompt.serving.app import create_app
from imprompt.serving.engine.loop import Engine
from imprompt.serving.engine.models import ModelStore
from imprompt.serving.engine.pictures import PictureListener, PictureRequest
from imprompt.serving.request_job import RequestJob
from imprompt.serving.service import ServerOptions, Service
from imprompt.serving.settings import Batching, ServedModel, ServerSettings
from imprompt.serving.supervisor import listen


def toy_model(toy: ToyModel, **changes: Any) -> dict[str, Any]:
    """The settings of the toy model, as in a configuration."""
    return {
        "name": "toy",
        "base": str(toy.base),
        "adapters": [str(toy.adapter)],
        "image_encoder": str(toy.image_encoder),
        "steps": 2,
        **changes,
    }


def toy_settings(toy: ToyModel, **changes: Any) -> ServerSettings:
    return ServerSettings.model_validate({"models": [toy_model(toy)], **changes})


def toy_job(toy: ToyModel, **changes: Any) -> dict[str, Any]:
    """The job of one picture."""
    models = {"base": str(toy.base), "adapter": str(toy.adapter), "image_encoder": str(toy.image_encoder)}
    return {**models, "steps": 3, "references": [], **changes}


@functools.cache
def _load_once(base: str, adapter: str, image_encoder: str, scheduler: str | None) -> JobModels:
    values = {"base": base, "adapter": adapter, "image_encoder": image_encoder, "scheduler": scheduler}
    return load_models(Job.model_validate({**values, "references": ["any.png"]}))


def generate(values: dict[str, Any]) -> np.ndarray:
    """The picture that `imprompt generate` makes of a job."""
    job = Job.model_validate(values)
    names = (values["base"], values["adapter"], values["image_encoder"])
    (result,) = run_job(job, models=_load_once(*names, job.scheduler))
    return np.asarray(result.picture)


def save_picture_of(seed: int, folder: Path) -> str:
    path = folder / f"{seed}.png"
    tiny.picture(seed=seed).save(path)
    return str(path)


class Log:
    """What a picture's listener has heard."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.previews: list[Image.Image] = []
        self.result: JobResult | Exception | None = None
        self.over = threading.Event()
        self.on_step: Callable[[], None] = lambda: None

    def listener(self) -> PictureListener:
        return PictureListener(
            on_start=lambda: None,
            on_step=self._step,
            on_preview=lambda _, picture: self.previews.append(picture),
            on_picture=self._end,
            on_error=self._end,
            on_warning=lambda _: None,
        )

    def _step(self, done: int, steps: int) -> None:
        self.steps.append((done, steps))
        self.on_step()

    def _end(self, result: JobResult | Exception) -> None:
        self.result = result
        self.over.set()

    @property
    def pixels(self) -> np.ndarray:
        """The picture; what failed is raised."""
        assert self.over.wait(60)
        if isinstance(self.result, Exception):
            raise self.result
        assert self.result is not None
        return np.asarray(self.result.picture)


class Bench:
    """An engine, and requests for it."""

    def __init__(self, toy: ToyModel, batching: Batching, **options: Any) -> None:
        self.served = ServedModel.model_validate(toy_model(toy))
        self.reports: list[Any] = []
        self.events: list[str] = []
        store = ModelStore(2, batching, self.events.append)
        options = {"queue_seconds": 1e9, **options}
        self.engine = Engine(store, batching, on_step=self.reports.append, **options)

    def request(
        self, values: dict[str, Any], client: str = "somebody", previews: int = 0
    ) -> tuple[Log, PictureRequest]:
        log = Log()
        request = PictureRequest(
            job=RequestJob.model_validate(values),
            served=self.served,
            client=client,
            listener=log.listener(),
            previews=previews,
        )
        return log, request

    def make(self, *jobs: dict[str, Any]) -> list[Log]:
        """Submit jobs at once, and wait for all."""
        requests = [self.request(values, client=str(number)) for number, values in enumerate(jobs)]
        self.engine.submit([request for _, request in requests])
        for log, _ in requests:
            assert log.over.wait(60)
        return [log for log, _ in requests]


@contextmanager
def running_engine(toy: ToyModel, batching: Batching | None = None, **options: Any) -> Iterator[Bench]:
    bench = Bench(toy, batching or Batching(), **options)
    bench.engine.start()
    try:
        yield bench
    finally:
        bench.engine.close()


@contextmanager
def running_service(settings: ServerSettings, **options: Any) -> Iterator[Service]:
    service = Service(settings, ServerOptions(**options))
    service.start()
    try:
        yield service
    finally:
        service.close()


def engine_of(service: Service) -> Engine:
    assert isinstance(service.engine, Engine)
    return service.engine


@contextmanager
def live_server(service: Service) -> Iterator[str]:
    """Serve on a free port of this machine; yield the address."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(create_app(service), lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def wait_until(is_true: Callable[[], bool], seconds: float | int = 30) -> bool:
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.005)
    return is_true()


def differ(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pictures, in grey levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def all_equal(pictures: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(picture, pictures[0]) for picture in pictures)
