"""Run a job: read its files, load its models, generate its pictures."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.denoiser_graphs import use_cuda_graphs
from imprompt.attention.diffusers_internals import get_execution_device
from imprompt.checkpoint import load_adapter
from imprompt.errors import ConfigError
from imprompt.generation import models as model_loading
from imprompt.generation.base_parts import apply_base_options, offload_base
from imprompt.generation.generate import generate_each
from imprompt.generation.job import Job, JobControl, collect_settings
from imprompt.generation.job.base_options import DType
from imprompt.generation.models import load_controlnet, make_control_image
from imprompt.generation.pairing import pair_models
from imprompt.generation.settings import Control, Settings, check_proportions
from imprompt.inputs.faces import InsightFaceEmbedder
from imprompt.inputs.image import load_image
from imprompt.reference import Reference
from imprompt.runtime.devices import choose_device
from imprompt.runtime.picture_files import SETTINGS_KEY

_GAP = 8


@dataclass(frozen=True, kw_only=True)
class JobInputs:
    """The contents of a job's files."""

    references: Mapping[str, list[Reference]]
    """By the name of the adapter that uses them."""
    settings: Settings
    """All settings except the prompt and the ControlNets."""
    control_images: Sequence[Image.Image]

    def count_steps(self, job: Job) -> int:
        """Return the number of denoising steps of the whole job."""
        return len(job.prompts) * job.count * self.settings.effective_steps


@dataclass(frozen=True, kw_only=True)
class JobModels:
    """The models of a job: base, adapters by name, ControlNets in their order."""

    pipe: DiffusionPipeline
    adapters: Mapping[str, ImagePromptAdapter]
    controlnets: Sequence[ControlNetModel]


class JobResult(NamedTuple):
    """A generated picture with its settings in `Image.info`, and the job that makes only this one."""

    picture: Image.Image
    job: Job


def read_inputs(job: Job) -> JobInputs:
    """Read all of a job's files, so that a wrong one is found before anything large is loaded.

    Raises:
        ConfigError: the job's adapter is not known yet, see `pair_models`
        ImageError, CheckpointError: a file that cannot be read
        InvalidReference: settings of a reference that exclude each other
        ConfigError: a picture to start from, its mask or a control picture is hair-thin
    """
    init_images = _read_init_images(job)
    settings = Settings(
        negative_prompt=job.negative_prompt,
        guidance_scale=job.guidance_scale,
        guidance_interval=job.guidance_interval,
        feature_cache=job.feature_cache,
        true_guidance_scale=job.true_guidance_scale,
        steps=job.steps,
        size=job.size,
        init_image=init_images.get("init_image"),
        strength=job.strength,
        inpaint=init_images.get("inpaint"),
        clip_skip=job.clip_skip,
        prompt_weighting=job.prompt_weighting,
    )
    return JobInputs(
        references={name: [one.load() for one in group] for name, group in job.by_adapter.items()},
        settings=settings,
        control_images=[_read_control_image(control) for control in job.controls],
    )


def _read_init_images(job: Job) -> dict[str, Image.Image]:
    """Read the picture to start from and its mask, if there are any."""
    pictures: dict[str, Image.Image] = {}
    for name, file, background in (
        ("init_image", job.init_image, (255, 255, 255)),
        ("inpaint", job.inpaint, (0, 0, 0)),
    ):
        if file is not None:
            pictures[name] = load_image(file, background=background)
            check_proportions(pictures[name], f"{name} {file}")
    return pictures


def _read_control_image(control: JobControl) -> Image.Image:
    picture = load_image(control.image)
    check_proportions(picture, f"the control picture {control.image}")
    return make_control_image(picture, control.model)


def load_models(job: Job) -> JobModels:
    """Load the base, every adapter once, and the ControlNets.

    Raises:
        UnknownModel, CheckpointError, AdapterMismatch: see `load_pipeline`, `load_adapter`, `load_controlnet`
        MissingExtra: the adapter needs faces, and the package that finds them is not installed
    """
    adapters = {name: load_job_adapter(name, job) for name in job.by_adapter}
    pipe = load_base(job)
    device = get_execution_device(pipe)
    return JobModels(
        pipe=pipe,
        # K' and V' are computed once, so full precision costs nothing.
        adapters={name: adapter.to(device).float() for name, adapter in adapters.items()},
        controlnets=[load_controlnet(control.model, pipe) for control in job.controls],
    )


def run_job(
    job: Job,
    inputs: JobInputs | None = None,
    models: JobModels | None = None,
    *,
    on_step: Callable[[], None] | None = None,
) -> Iterator[JobResult]:
    """Generate the job's pictures, prompt by prompt and seed by seed, each when the iterator reaches it.

    Args:
        job: the job
        inputs: from `read_inputs`; read here if not given
        models: from `load_models`; loaded here if not given
        on_step: called after every denoising step

    Raises:
        ImpromptError: as `generate_each`, `read_inputs` and `load_models`.
    """
    job = pair_models(job)
    inputs = inputs or read_inputs(job)
    models = models or load_models(job)
    prompted = [(models.adapters[name], group) for name, group in inputs.references.items()]
    controls = [
        Control(model, image, control.scale)
        for model, image, control in zip(models.controlnets, inputs.control_images, job.controls, strict=True)
    ]
    for prompt in job.prompts:
        settings = replace(inputs.settings, prompt=prompt, controls=controls)
        pictures = generate_each(models.pipe, prompted, settings, seeds=job.seeds, on_step=on_step)
        for seed, picture in zip(job.seeds, pictures, strict=True):
            single_job = _job_of_picture(job, prompt, seed, picture)
            picture.info[SETTINGS_KEY] = json.dumps(collect_settings(single_job, Path(job.output)))
            yield JobResult(picture, single_job)


def draw_encoder_views(inputs: JobInputs, models: JobModels) -> Image.Image:
    """Draw the images that the image encoders receive for the references, in one row.

    Raises:
        ConfigError: all references are embeddings
    """
    views = [
        view
        for name, references in inputs.references.items()
        for reference in references
        for view in models.adapters[name].views(reference)
    ]
    if not views:
        raise ConfigError("the references are embeddings: there is no picture to be seen")
    width = sum(view.width + _GAP for view in views) - _GAP
    row = Image.new("RGB", (width, max(view.height for view in views)), "white")
    left = 0
    for view in views:
        row.paste(view, (left, 0))
        left += view.width + _GAP
    return row


def _job_of_picture(job: Job, prompt: str, seed: int, picture: Image.Image) -> Job:
    changes = {"prompt": prompt, "seed": seed, "count": 1, "width": picture.width, "height": picture.height}
    return job.model_copy(update=changes)


def load_base(job: Job) -> DiffusionPipeline:
    """Load the base of a job, with its LoRAs, sampler and all other options.

    Raises:
        UnknownModel: see `load_pipeline`
    """
    assert job.base is not None
    with_openvino = job.backend == "openvino"
    device = choose_device(job.device or ("cpu" if with_openvino else None))
    pipe = model_loading.load_pipeline(
        job.base,
        device="cpu" if job.offload else device,
        dtype=torch.float32 if with_openvino else _parse_dtype(job.dtype),
        variant=job.variant,
        revision=job.revision,
    )
    pipe.set_progress_bar_config(disable=True)
    apply_base_options(pipe, job)
    if job.offload:
        offload_base(pipe, job.offload, device)
    if job.cuda_graphs:
        use_cuda_graphs(pipe)
    if with_openvino:
        from imprompt.backends.acceleration import accelerate

        accelerate(pipe, dtype=job.dtype or "float32")
    return pipe


def _parse_dtype(name: DType | None) -> torch.dtype | Literal["auto"] | None:
    return name if name is None or name == "auto" else getattr(torch, name)


def load_job_adapter(name: str, job: Job) -> ImagePromptAdapter:
    """Load one of a job's adapters, with its image encoder, and a face embedder if its references need one.

    Raises:
        UnknownModel, CheckpointError, AdapterMismatch: see `load_adapter`
        MissingExtra: the package that finds faces is not installed
    """
    adapter = load_adapter(
        name, image_encoder=job.image_encoder or "known", face_plus_version=job.face_plus_version
    )
    with_pictures = [one for one in job.by_adapter[name] if one.face is None and not one.is_embeddings]
    if "face_embedding" in adapter.projection.takes and with_pictures:
        adapter.face_embedder = InsightFaceEmbedder()
    return adapter
