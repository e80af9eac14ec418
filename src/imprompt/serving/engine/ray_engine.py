"""An engine of many replicas, which Ray Serve starts, watches and replaces: for several GPUs or machines.

The server keeps the queue, the jobs and the pictures; a replica computes a picture and sends what happens. So
a replica that dies takes with it the pictures that it was computing, and nothing else.
"""

import importlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.errors import ImpromptError, MissingExtra
from imprompt.generation.run import JobResult
from imprompt.inputs.crop import Crop
from imprompt.serving.engine.base import EngineBase, EngineFailure, make_failure
from imprompt.serving.engine.picture_thread import PictureCanceled
from imprompt.serving.engine.pictures import PictureRequest
from imprompt.serving.engine.replica import PictureEvent, PictureOrder, Replica
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import ServedModel, ServerSettings

_log = logging.getLogger("imprompt.serving")

_NAME = "imprompt"
_WATCH_SECONDS = 1.0
_VIEW_SECONDS = 120.0
_LAST_SECONDS = 30.0
"""The longest time that Ray gets to stop the replicas."""

_HEALTH_SECONDS = 5.0
"""How often Ray looks at each replica."""


class RemoteModels:
    """What is known of the models in the memory of the replicas, from the pictures that they made."""

    def __init__(self) -> None:
        self._modes: dict[str, list[str]] = {}

    @property
    def names(self) -> list[str]:
        """The models that a replica had in memory when it made a picture."""
        return list(self._modes)

    def find_modes(self, name: str) -> list[str]:
        """Return the modes of `Reference.layers` that a model has; none if it is not known yet."""
        return self._modes.get(name, [])

    def learn(self, modes: dict[str, list[str]]) -> None:
        """Include what a replica says of its models."""
        self._modes |= modes


class _RemotePicture:
    """A picture that a replica makes."""

    def __init__(self, request: PictureRequest) -> None:
        self.request, self.rows = request, 0
        self.is_canceled = False
        self._events: Any = None
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since it was sent, or since its computation began."""
        return time.perf_counter() - self._start

    def begin(self) -> None:
        """Note that its computation begins."""
        self._start = time.perf_counter()
        self.request.listener.on_start()

    def cancel(self) -> None:
        """End it before its next step."""
        self.is_canceled = True
        if self._events is not None:
            self._events.cancel()

    def follow(self, handle: Any) -> Iterator[PictureEvent]:
        """Send it to a replica; yield what happens."""
        self._events = handle.options(stream=True).make.remote(pack_order(self.request))
        if self.is_canceled:
            self._events.cancel()
        yield from self._events


class RayEngine(EngineBase[_RemotePicture]):
    """Makes pictures with the replicas of a Ray cluster: that of RAY_ADDRESS, else one on this machine.

    Args:
        settings: models, batching, limits, and the replicas
        queue_seconds: the most seconds of work that may wait

    Attributes:
        store: what is known of the models
        beat: when Ray last answered, in seconds of `time.monotonic`
        failures: how many pictures were lost with their replica
        replicas: how many replicas run
    """

    def __init__(self, settings: ServerSettings, queue_seconds: float | int) -> None:
        super().__init__(queue_seconds)
        assert settings.ray is not None
        self._settings = settings
        self._most = settings.ray.most * settings.batching.pictures
        self.store = RemoteModels()
        self.beat = time.monotonic()
        self.failures = self.replicas = 0
        self._is_open = True
        self._handle: Any = None
        self._ray, self._serve = _import_ray()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._send_all, "replicas"), (self._watch, "watch"))
        ]

    def start(self) -> None:
        """Begin to start replicas, and to send them pictures."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Cancel everything and stop the replicas."""
        self._is_open = False
        self.cancel(lambda request: True)
        for thread in self._threads:
            thread.join(_LAST_SECONDS)

    @property
    def is_alive(self) -> bool:
        """Whether there is a replica."""
        return self.replicas > 0

    def list_views(self, served: ServedModel, job: RequestJob, crop: Crop | str) -> list[Image.Image]:
        """Return what the image encoder of a job's adapter sees of its first reference.

        Raises:
            ImpromptError: a model or a picture cannot be loaded, or there is no replica
        """
        if self._handle is None:
            raise EngineFailure("there is no replica yet; try again")
        response = self._handle.list_views.remote(_pack(job, served.name), crop)
        try:
            return response.result(timeout_s=_VIEW_SECONDS)
        except Exception as error:
            cause = getattr(error, "cause", error)
            raise cause if isinstance(cause, ImpromptError) else make_failure(error) from error

    # In the engine's threads

    def _watch(self) -> None:
        """Connect to the cluster, start the replicas, and count those that run."""
        try:
            self._connect()
        except Exception:
            _log.exception("Ray does not start; the server will not be ready")
            return
        while self._is_open:
            self.replicas = self._count_replicas()
            self.beat = time.monotonic()
            time.sleep(_WATCH_SECONDS)
        self._disconnect()

    def _count_replicas(self) -> int:
        application = self._serve.status().applications.get(_NAME)
        if application is None or _NAME not in application.deployments:
            return 0
        states = application.deployments[_NAME].replica_states
        return sum(number for state, number in states.items() if state == "RUNNING")

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        if not self._ray.is_initialized():
            self._ray.init(address=address or "local", log_to_driver=False, **_local_options(address))
        self._serve.start(proxy_location="Disabled")
        deployment = self._serve.deployment(Replica, name=_NAME, **_describe_deployment(self._settings))
        self._handle = self._serve.run(deployment.bind(self._settings), name=_NAME, route_prefix=None)
        with self._changed:
            self._signal()

    def _disconnect(self) -> None:
        """Stop the replicas, which would keep their GPUs on a cluster that goes on, and a local Ray."""
        self._serve.delete(_NAME)
        self._ray.shutdown()

    def _send_all(self) -> None:
        """Send pictures while there is room for them in the replicas."""
        while self._is_open:
            with self._changed:
                while self._handle is not None and len(self._queue) and len(self._active) < self._most:
                    picture = _RemotePicture(self._queue.take())
                    self._active.append(picture)
                    threading.Thread(target=self._make, args=[picture], daemon=True).start()
                self._changed.wait(_WATCH_SECONDS)

    def _make(self, picture: _RemotePicture) -> None:
        """Follow one picture to its end."""
        listener = picture.request.listener
        try:
            for event in picture.follow(self._handle):
                self._handle_event(picture, event)
        except ImpromptError as error:
            listener.on_error(error)
        except Exception as error:
            if picture.is_canceled:
                listener.on_error(PictureCanceled())
            else:
                self.failures += 1
                _log.error("a replica failed: %s", error)
                listener.on_error(make_failure(error))
        finally:
            with self._changed:
                self._active.remove(picture)
                self._signal()

    def _handle_event(self, picture: _RemotePicture, event: PictureEvent) -> None:
        request, listener = picture.request, picture.request.listener
        match event.name, event.values:
            case "start", ():
                picture.begin()
            case "step", (done, steps):
                picture.rows = request.rows * done // steps
                listener.on_step(done, steps)
            case "preview", (done, image):
                listener.on_preview(done, image)
            case "warning", (message,):
                listener.on_warning(message)
            case "picture", (image, modes):
                self.store.learn(modes)
                self._observe_pace(request.served.name, picture.seconds / request.rows / self.running)
                listener.on_picture(JobResult(image, request.job))
            case "error", (fault, message):
                listener.on_error(_make_error(fault, message))


def pack_order(request: PictureRequest) -> PictureOrder:
    """Return a picture with the contents of all its files."""
    order = _pack(request.job, request.served.name)
    return order._replace(client=request.client, previews=request.previews)


def _pack(job: RequestJob, model: str) -> PictureOrder:
    files = [Path(file) for file in job.files]
    return PictureOrder(
        job=job.model_dump(mode="json", exclude_unset=True),
        model=model,
        client="",
        previews=0,
        folder=str(Path(job.output).parent),
        files={file.name: file.read_bytes() for file in files},
    )


def _make_error(fault: str, message: str) -> Exception:
    kinds: dict[str, type[Exception]] = {"engine": EngineFailure, "request": ImpromptError}
    return kinds.get(fault, RuntimeError)(message)


def _import_ray() -> Sequence[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray"), importlib.import_module("ray.serve")
    except ImportError as error:
        raise MissingExtra(error.name or "ray", "ray") from error


def _describe_deployment(settings: ServerSettings) -> dict[str, Any]:
    """Return the options of Ray Serve."""
    options, pictures = settings.ray, settings.batching.pictures
    assert options is not None
    size: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scaling = {"min_replicas": options.replicas, "max_replicas": options.max_replicas}
        size = {"autoscaling_config": {**scaling, "target_ongoing_requests": pictures}}
    return {
        **size,
        "max_ongoing_requests": pictures,
        "health_check_period_s": _HEALTH_SECONDS,
        "ray_actor_options": {"num_gpus": options.gpus, "num_cpus": options.cpus},
    }


def _local_options(address: str | None) -> dict[str, Any]:
    """Return the options of a Ray that this process starts: nobody else can reach it."""
    return {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
