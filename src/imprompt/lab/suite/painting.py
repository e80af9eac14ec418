"""Pictures from image prompts: many characters in one call of the pipeline, each with its own noise."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from torch import Generator

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.generation.pipeline_results import call_pipeline
from imprompt.lab.suite.subjects import Subject, TextChange
from imprompt.reference import Reference


@dataclass(frozen=True)
class SuiteModels:
    """What is measured, and by what. Adapters have their image encoder and are not attached.

    Attributes:
        pipe: the base
        adapter: what image prompts act through
        judge: what reads the pictures
        name: the adapter's, for people
        plus: another adapter, of the grid of features; only figures compare it
        controlnet: of edges; only figures use it
        fine_tuned: the base as fine-tuned on line drawings; only figures use it
    """

    pipe: StableDiffusionPipeline | StableDiffusionControlNetPipeline
    adapter: ImagePromptAdapter
    judge: CharacterJudge
    name: str = "adapter"
    plus: ImagePromptAdapter | None = None
    controlnet: ControlNetModel | None = None
    fine_tuned: StableDiffusionPipeline | None = None


@dataclass(frozen=True)
class PaintSettings:
    """How pictures are made.

    Attributes:
        steps: denoising steps
        guidance_scale: w
        batch_size: pictures in one call of the pipeline
    """

    steps: int = 25
    guidance_scale: float = 3.0
    batch_size: int = 32


@dataclass(frozen=True)
class Condition:
    """One way of asking: the strength λ of the image prompt, a text or none, and which seed."""

    scale: float
    change: TextChange | None = None
    seed: int = 0

    @property
    def text(self) -> str:
        """The prompt."""
        return "" if self.change is None else self.change.text


def paint(
    models: SuiteModels,
    subjects: Sequence[Subject],
    condition: Condition,
    settings: PaintSettings,
    advance: Callable[[int], None] = lambda pictures: None,
    *,
    edges: Sequence[Image.Image] = (),
) -> list[Image.Image]:
    """One picture of each subject; a subject's noise is the same in every condition with the same seed.

    Args:
        models: what draws; a ControlNet's pipeline where there are `edges`
        subjects: whose drawings are the image prompts
        condition, settings: how
        advance: called with how many pictures were made, call by call
        edges: one control picture for each subject, or none
    """

    def call(group: Sequence[Subject], arguments: dict[str, Any]) -> list[Image.Image]:
        references = [Reference(subject.picture, scale=condition.scale) for subject in group]
        with models.adapter.references(references):
            return call_pipeline(cast(Any, models.pipe), arguments)

    with models.adapter.attach(models.pipe):
        return paint_groups(call, subjects, condition, settings, advance, edges=edges)


def paint_groups(
    call: Callable[[Sequence[Subject], dict[str, Any]], list[Image.Image]],
    subjects: Sequence[Subject],
    condition: Condition,
    settings: PaintSettings,
    advance: Callable[[int], None] = lambda pictures: None,
    *,
    edges: Sequence[Image.Image] = (),
) -> list[Image.Image]:
    """As `paint`, by anything that draws: `call` is given each group's subjects and the pipeline's arguments.

    The strength of the image prompt, `condition.scale`, is not among the arguments: it is up to `call`.
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(subjects), settings.batch_size):
        group = slice(start, start + settings.batch_size)
        arguments = pipeline_arguments(subjects[group], condition, settings, edges[group])
        made = call(subjects[group], arguments)
        pictures += made
        advance(len(made))
    return pictures


def pipeline_arguments(
    subjects: Sequence[Subject],
    condition: Condition,
    settings: PaintSettings,
    edges: Sequence[Image.Image] = (),
) -> dict[str, Any]:
    """What a pipeline is called with to draw one picture of each subject."""
    generators = [Generator().manual_seed(noise_seed(subject, condition.seed)) for subject in subjects]
    arguments: dict[str, Any] = {
        "prompt": [condition.text] * len(subjects),
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": generators,
    }
    return arguments | {"image": list(edges)} if edges else arguments


def noise_seed(subject: Subject, seed: int) -> int:
    """A seed for each subject: subjects share no noise, conditions do."""
    digest = hashlib.sha256(f"{subject.split}/{subject.number}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


@torch.no_grad()
def through_codec(models: SuiteModels, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded by the base's autoencoder: no picture that it makes can be closer."""
    vae, processor = cast(Any, models.pipe.vae), cast(Any, models.pipe.image_processor)
    decoded = []
    for start in range(0, len(pictures), 32):
        pixels = processor.preprocess(list(pictures[start : start + 32]))
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        decoded += processor.postprocess(vae.decode(latents).sample.float().cpu())
    return decoded
