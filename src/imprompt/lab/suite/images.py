"""Images of characters from image prompts: many in one call of the pipeline, each with its own noise."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.generation.pipeline_call import call_pipeline, call_pipeline_by_rows
from imprompt.generation.transformer_bases import is_flux
from imprompt.lab.suite.subjects import Subject, TextChange
from imprompt.reference import Reference


@dataclass(frozen=True)
class SuiteModels:
    """The models of the suite. Adapters have their image encoder and are not attached.

    Attributes:
        pipe: the base; also the embedded transformer's
        adapter: the adapter that is measured
        judge: reads the images
        name: the adapter's name
        plus: another adapter, of the grid of features; only figures use it
        controlnet: of edges; only figures use it
        fine_tuned: the base as fine-tuned on line drawings; only figures use it
    """

    pipe: DiffusionPipeline
    adapter: ImagePromptAdapter
    judge: CharacterJudge
    name: str = "adapter"
    plus: ImagePromptAdapter | None = None
    controlnet: ControlNetModel | None = None
    fine_tuned: StableDiffusionPipeline | None = None


@dataclass(frozen=True)
class ImageSettings:
    """How images are generated.

    Attributes:
        steps: number of denoising steps
        guidance_scale: w
        batch_size: images in one call of the pipeline
    """

    steps: int = 25
    guidance_scale: float = 3.0
    batch_size: int = 32


@dataclass(frozen=True)
class SuiteSettings:
    """How much the suite measures.

    Attributes:
        subjects: characters of each split
        text_subjects: characters of unseen combinations with each text
        gallery: number of drawings of its style among which a reference is searched, itself included
        seeds: images of each of the first `diverse` subjects, for diversity
        diverse: see `seeds`
        paint: how images are generated
    """

    subjects: int = 120
    text_subjects: int = 48
    gallery: int = 200
    seeds: int = 4
    diverse: int = 24
    paint: ImageSettings = field(default_factory=ImageSettings)


SMALL = SuiteSettings(24, 12, 40, 2, 8)
"""Settings that take a minute or two on two cores."""


@dataclass(frozen=True)
class SuiteCondition:
    """One way to generate: the scale λ of the image prompt, a text or none, and a seed."""

    scale: float
    change: TextChange | None = None
    seed: int = 0

    @property
    def text(self) -> str:
        """The prompt."""
        return "" if self.change is None else self.change.text


def generate_images(
    models: SuiteModels,
    subjects: Sequence[Subject],
    condition: SuiteCondition,
    settings: ImageSettings,
    advance: Callable[[int], None] = lambda pictures: None,
    *,
    edges: Sequence[Image.Image] = (),
) -> list[Image.Image]:
    """Generate one image of each subject; its noise is the same in every condition with the same seed.

    Args:
        models: the models; with a ControlNet's pipeline if there are `edges`
        subjects: their drawings are the image prompts
        condition, settings: how images are generated
        advance: called with the number of images of each call
        edges: one control image for each subject, or none
    """

    def call(rows: slice, arguments: dict[str, Any]) -> list[Image.Image]:
        references = [Reference(subject.picture, scale=condition.scale) for subject in subjects[rows]]
        if is_flux(models.pipe):  # whose guidance_scale is no guidance unless it is distilled
            negative = [""] * len(references)
            arguments |= {"true_cfg_scale": settings.guidance_scale, "negative_prompt": negative}
        with models.adapter.use(references):
            return call_pipeline(cast(Any, models.pipe), arguments)

    inputs = {"image": list(edges)} if edges else {}
    with models.adapter.attach(models.pipe):
        return generate_rows(call, subjects, condition, settings, advance, **inputs)


def generate_rows(
    call: Callable[[slice, dict[str, Any]], list[Image.Image]],
    subjects: Sequence[Subject],
    condition: SuiteCondition,
    settings: ImageSettings,
    advance: Callable[[int], None] = lambda pictures: None,
    **inputs: Any,
) -> list[Image.Image]:
    """Generate as `generate_images` does, with any function that calls a pipeline.

    Args:
        call: receives the rows of `subjects` and the pipeline's arguments; it applies `condition.scale`
        subjects, condition, settings, advance: as for `generate_images`
        **inputs: further arguments of the pipeline; a list has a value for each subject
    """
    arguments = {
        "prompt": [condition.text] * len(subjects),
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        **inputs,
    }
    seeds = [derive_noise_seed(subject, condition.seed) for subject in subjects]
    return call_pipeline_by_rows(call, arguments, seeds, batch_size=settings.batch_size, advance=advance)


def derive_noise_seed(subject: Subject, seed: int) -> int:
    """Return a seed for each subject: subjects share no noise, conditions do."""
    digest = hashlib.sha256(f"{subject.split}/{subject.number}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


@torch.no_grad()
def reconstruct_pictures(models: SuiteModels, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Encode and decode pictures with the base's autoencoder: no image that it makes can be closer."""
    vae, processor = cast(Any, models.pipe.vae), cast(Any, models.pipe.image_processor)
    decoded = []
    for start in range(0, len(pictures), 32):
        pixels = processor.preprocess(list(pictures[start : start + 32]))
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        decoded += processor.postprocess(vae.decode(latents).sample.float().cpu())
    return decoded
