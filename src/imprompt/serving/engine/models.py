"""The models of a server: loaded when a picture first needs them, shared by all, dropped when unused."""

import copy
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.diffusers_internals import get_execution_device
from imprompt.attention.layer_weights import list_modes
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.generation.base_parts import build_scheduler
from imprompt.generation.models import load_controlnet
from imprompt.generation.run import JobModels, load_base, load_job_adapter
from imprompt.inputs.choices import Input
from imprompt.inputs.crop import Crop
from imprompt.inputs.encoder import ImageEncoder
from imprompt.inputs.image import load_image
from imprompt.reference import Reference
from imprompt.serving.engine.denoiser_calls import MergedDenoiser
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import Batching, ServedModel

_ENCODED_PICTURES = 64
"""How many results of an image encoder are kept."""

Count = Callable[[str], None]
"""Counts an event by its name."""


class LoadedModel:
    """A base in memory, with those of its adapters and ControlNets that were needed so far.

    Args:
        pipe: its pipeline, which is never called itself
        fixed_rows: see `MergedDenoiser`

    Attributes:
        users: how many pictures need it now
    """

    def __init__(self, pipe: DiffusionPipeline, fixed_rows: int | None) -> None:
        self.pipe = pipe
        self.denoiser = MergedDenoiser(getattr(pipe, "unet"), fixed_rows)  # noqa: B009
        self.adapters: dict[str, ImagePromptAdapter] = {}
        self.controlnets: dict[str, ControlNetModel] = {}
        self.users = 0

    def has_parts(self, job: RequestJob) -> bool:
        """Whether the adapters and ControlNets of a job are in memory."""
        controls = {control.model for control in job.controls}
        return {*job.by_adapter} <= {*self.adapters} and controls <= {*self.controlnets}

    def for_picture(self, job: RequestJob, unet: Any) -> JobModels:
        """Return the models of one picture: weights are shared, scheduler and attachments are its own.

        Args:
            job: the picture's job
            unet: the stand-in for the U-Net on which its pipeline runs
        """
        pipe = copy.copy(self.pipe)
        scheduler: Any = getattr(self.pipe, "scheduler")  # noqa: B009
        own = copy.deepcopy(scheduler) if job.scheduler is None else build_scheduler(job.scheduler, scheduler)
        vars(pipe).update(unet=unet, scheduler=own)
        return JobModels(
            pipe=pipe,
            adapters={name: copy.copy(self.adapters[name]) for name in job.by_adapter},
            controlnets=[self.controlnets[control.model] for control in job.controls],
        )


class ModelStore:
    """Loads models on demand, and keeps the most recently used ones.

    Args:
        most: how many bases are kept
        batching: how their U-Net calls are put together
        count: counts "load", and "hit" and "miss" of the image encoders' results
    """

    def __init__(self, most: int, batching: Batching, count: Count = lambda event: None) -> None:
        self._most, self._batching, self._count = most, batching, count
        self._models: dict[str, LoadedModel] = {}
        self._lock = threading.Lock()  # Held for a moment only.
        self._loading = threading.Lock()  # Held while files are read; libraries are patched meanwhile.

    @property
    def names(self) -> list[str]:
        """The names of the models in memory."""
        return list(self._models)

    def find_modes(self, name: str) -> list[str]:
        """Return the modes of `Reference.layers` that a model has; none if it is not in memory."""
        model = self._models.get(name)
        if model is None:
            return []
        unet: Any = model.denoiser.unet
        return list_modes({number: layer for number, (layer, _) in find_cross_attention_layers(unet).items()})

    @contextmanager
    def use(self, served: ServedModel, job: RequestJob) -> Iterator[LoadedModel]:
        """Load whatever a job needs of a model, and keep the model in memory inside the context.

        Raises:
            ImpromptError: as `load_models`
        """
        model = self._find(served) or self._load(served, job)
        try:
            if not model.has_parts(job):
                with self._loading:
                    self._load_parts(model, job)
            yield model
        finally:
            with self._lock:
                model.users -= 1
            self._drop_idle()

    def list_views(self, served: ServedModel, job: RequestJob, crop: Crop | str) -> list[Image.Image]:
        """Return what the image encoder of a job's adapter sees of its first reference.

        Raises:
            ImpromptError: a model or a picture cannot be loaded
        """
        (file,) = job.references[0].images
        with self.use(served, job) as model:
            return model.adapters[next(iter(job.by_adapter))].views(Reference(load_image(file), crop=crop))

    def _find(self, served: ServedModel) -> LoadedModel | None:
        """Return a loaded model, with one more user, as the most recently used one."""
        with self._lock:
            model = self._models.pop(served.name, None)
            if model is not None:
                self._models[served.name] = model
                model.users += 1
            return model

    def _load(self, served: ServedModel, job: RequestJob) -> LoadedModel:
        with self._loading:
            if (model := self._find(served)) is not None:  # another thread has loaded it meanwhile
                return model
            self._drop_idle(room=1)
            self._count("load")
            # Every picture builds its own scheduler from the base's.
            pipe = load_base(job.model_copy(update={"scheduler": None}))
            with self._lock:
                model = self._models[served.name] = LoadedModel(pipe, self._batching.fixed_rows)
                model.users += 1
            return model

    def _drop_idle(self, room: int = 0) -> None:
        """Drop the least recently used models that no picture needs, so that there is room for some more."""
        with self._lock:
            idle = [name for name, model in self._models.items() if not model.users]
            dropped = idle[: max(0, len(self._models) + room - self._most)]
            for name in dropped:
                del self._models[name]
        if dropped and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load_parts(self, model: LoadedModel, job: RequestJob) -> None:
        device = get_execution_device(model.pipe)
        for name in {*job.by_adapter} - {*model.adapters}:
            adapter = load_job_adapter(name, job)
            if adapter.image_encoder is not None:
                adapter.image_encoder = RememberingEncoder(adapter.image_encoder, self._count)
            model.adapters[name] = adapter.to(device).float()
        for name in {control.model for control in job.controls} - {*model.controlnets}:
            model.controlnets[name] = load_controlnet(name, model.pipe)


class RememberingEncoder(ImageEncoder):
    """An image encoder that keeps its latest results, by the content of the pixels.

    Args:
        encoder: computes the results
        count: counts "hit" and "miss"
    """

    def __init__(self, encoder: ImageEncoder, count: Count) -> None:
        super().__init__(encoder.model, mean=encoder.mean, std=encoder.std, name=encoder.name)
        self._count = count
        self._results: dict[tuple[object, ...], dict[Input, Tensor]] = {}

    def inputs(self, pixels: Tensor, names: Collection[Input]) -> dict[Input, Tensor]:
        """Return the outputs by name, as `ImageEncoder.inputs`; known pixels are not encoded again."""
        digest = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
        key = digest, tuple(pixels.shape), self.device, self.dtype, *sorted(names)
        result = self._results.pop(key, None)
        self._count("miss" if result is None else "hit")
        self._results[key] = result = super().inputs(pixels, names) if result is None else result
        while len(self._results) > _ENCODED_PICTURES:
            del self._results[next(iter(self._results))]
        return dict(result)
