"""Making the pictures to be scored: many concepts in one call, each with its own reference and seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from torch import Generator

from imprompt.adapter import ImagePromptAdapter
from imprompt.embeddings import ImageEmbeddings
from imprompt.evaluation.asking import THINGS_ON_RED, Asking
from imprompt.evaluation.judge import Judge
from imprompt.evaluation.pictures import Drawing, HeldOut, chance_of
from imprompt.pipeline_results import call_pipeline
from imprompt.reference import Reference


@dataclass(frozen=True)
class Models:
    """What is measured, and by what. The adapter has its image encoder and is not attached.

    `name` is what reports call the adapter.
    """

    pipe: StableDiffusionPipeline
    adapter: ImagePromptAdapter
    judge: Judge
    name: str = "adapter"


@dataclass(frozen=True)
class Settings:
    """How pictures are made.

    Args:
        seeds: pictures of each concept where the main figures come from
        steps: denoising steps
        guidance_scale: w
        batch_size: pictures in one call of the pipeline; 32 to 64 is best on a processor
        asking: the texts, where there is text
        curve: concepts behind the curve over λ; the first ones
    """

    seeds: int = 4
    steps: int = 25
    guidance_scale: float = 7.5
    batch_size: int = 48
    asking: Asking = THINGS_ON_RED
    curve: int = 48


@dataclass(frozen=True)
class Condition:
    """One way of asking: λ, texts if any, and how many seeds."""

    name: str
    scale: float
    asking: Asking | None = None
    seeds: int = 1

    def text(self, concept: str) -> str:
        """The text beside a reference of this concept; none is the empty one."""
        return "" if self.asking is None else self.asking.beside(concept)


Pictures = list[list[Image.Image]]
"""Several pictures of each reference."""


class Painter:
    """Makes pictures and keeps them: what two parts of a report show is made once.

    Args:
        models: see there
        held_out: where the references' pictures are
        settings: how
    """

    def __init__(self, models: Models, held_out: HeldOut, settings: Settings) -> None:
        self.models, self.held_out, self.settings = models, held_out, settings
        self._made: dict[tuple[float, str, str], list[Image.Image]] = {}

    def paint(
        self,
        references: Sequence[Drawing],
        condition: Condition,
        advance: Callable[[int], None] = lambda pictures: None,
    ) -> Pictures:
        """`condition.seeds` pictures of each reference; see `make_pictures`."""
        missing = [
            one for one in references if len(self._made.get(_key(one, condition), ())) < condition.seeds
        ]
        made = make_pictures(
            self.models, self.held_out, missing, condition, settings=self.settings, advance=advance
        )
        self._made |= {_key(one, condition): several for one, several in zip(missing, made, strict=True)}
        return [self._made[_key(one, condition)][: condition.seeds] for one in references]


def count_pictures(asked: Sequence[tuple[Sequence[Drawing], Condition]]) -> int:
    """How many pictures a painter makes who is asked for all this, one after another."""
    made: dict[tuple[float, str, str], int] = {}
    for references, condition in asked:
        for one in references:
            key = _key(one, condition)
            made[key] = max(made.get(key, 0), condition.seeds)
    return sum(made.values())


def _key(reference: Drawing, condition: Condition) -> tuple[float, str, str]:
    """What makes pictures differ; a condition's name does not."""
    return float(condition.scale), condition.text(reference.concept), reference.concept


def make_pictures(
    models: Models,
    held_out: HeldOut,
    references: Sequence[Drawing],
    condition: Condition,
    *,
    settings: Settings,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Pictures:
    """`condition.seeds` pictures of each reference; a concept's k-th seed is the same in every condition.

    A picture depends a little on the size of its batch (the order of sums in matrix products), not on its
    company.

    Args:
        models: see there
        held_out: where the references' pictures are
        references: one for each concept
        condition: what is asked for
        settings: how
        advance: told how many pictures were made, call by call
    """
    if not references:
        return []
    # By the adapter's own encoder: once for all seeds.
    embeddings = [models.adapter.encode(held_out.on_white(reference)) for reference in references]
    at_once = max(settings.batch_size // condition.seeds, 1)
    made: Pictures = []
    with models.adapter.attach(models.pipe):
        for start in range(0, len(references), at_once):
            group = slice(start, start + at_once)
            made += _make_group(models, references[group], embeddings[group], condition, settings)
            advance(len(references[group]) * condition.seeds)
    return made


def _make_group(
    models: Models,
    references: Sequence[Drawing],
    embeddings: Sequence[ImageEmbeddings],
    condition: Condition,
    settings: Settings,
) -> list[list[Image.Image]]:
    """One call of the pipeline."""
    call, count = cast(Callable[..., Any], models.pipe), condition.seeds
    prompts: Any = [Reference(one, scale=condition.scale) for one in embeddings]
    seeds = [seed_of(reference.concept, k) for reference in references for k in range(count)]
    with models.adapter.references(prompts):
        asked = {
            "prompt": [condition.text(reference.concept) for reference in references],
            "num_images_per_prompt": count,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "generator": [Generator().manual_seed(seed) for seed in seeds],
        }
        pictures = call_pipeline(call, asked, seeds=seeds)
    return [pictures[start : start + count] for start in range(0, len(pictures), count)]


@torch.no_grad()
def through_codec(models: Models, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded by the base's own autoencoder: no picture it makes can be sharper."""
    vae, processor = cast(Any, models.pipe.vae), models.pipe.image_processor
    side = models.pipe.unet.config["sample_size"] * models.pipe.vae_scale_factor
    pixels = cast(Any, processor.preprocess(list(pictures), height=side, width=side))
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return cast(list[Image.Image], processor.postprocess(vae.decode(latents).sample.float().cpu()))


def seed_of(concept: str, k: int) -> int:
    """The k-th seed of a concept: concepts share no noise, conditions do."""
    return chance_of(f"seed {k} of {concept}") >> 1
