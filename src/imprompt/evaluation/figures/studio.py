"""Where the figures' pictures are made: the shipped models, held-out references, one call for a column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from torch import Generator

from imprompt import mini
from imprompt.embeddings import ImageEmbeddings
from imprompt.evaluation.exhibits import FEATURED
from imprompt.evaluation.judge import Judge, load_judge
from imprompt.evaluation.pictures import Drawing, HeldOut, load_held_out
from imprompt.evaluation.sampling import seed_of
from imprompt.reference import Reference

SEEDS = 4
"""How many pictures of one image prompt are compared with each other."""


@dataclass(frozen=True)
class Settings:
    """How a figure's pictures are made.

    Args:
        measured: concepts behind every number; those that are shown, and then others by hash
        shown: rows of a figure
        steps: denoising steps
        guidance_scale: w
    """

    measured: int = 8
    shown: int = 6
    steps: int = 25
    guidance_scale: float = 7.5


class Studio:
    """The embedded model and everything that stands beside it, and how a column of pictures is made."""

    def __init__(self, weights: Path, settings: Settings, adapter: str = "mini") -> None:
        self.weights, self.settings = weights, settings
        self.adapter = mini.adapter(adapter, weights=weights)
        self.pipe = mini.pipeline(weights=weights)
        self.judge: Judge = load_judge(weights / "judge")
        self.held_out: HeldOut = load_held_out()
        self.drawings: list[Drawing] = chosen(self.held_out, settings.measured)
        self.references = [self.held_out.on_white(drawing) for drawing in self.drawings]

    @cached_property
    def embeddings(self) -> list[ImageEmbeddings]:
        """What the image encoder makes of each reference: once for all figures."""
        return [self.adapter.encode(reference) for reference in self.references]

    @cached_property
    def alone(self) -> list[list[Image.Image]]:
        """Pictures of the image prompts alone, λ = 1, from the first `SEEDS` seeds: once for all figures."""
        return [self.draw(self.prompts(), seed=seed) for seed in range(SEEDS)]

    @cached_property
    def blueprint(self) -> StableDiffusionPipeline:
        """The fine-tuned base."""
        return mini.pipeline(style="blueprint", weights=self.weights)

    def prompts(self, *, scale: float = 1.0, turn: int = 0, **options: Any) -> list[Reference]:
        """The image prompt of each row; `turn` = k: that of the k-th row after it."""
        rows = turned(self.embeddings, turn)
        return [Reference(embedding, scale=scale, **options) for embedding in rows]

    def draw(
        self,
        *image_prompts: list[Reference],
        text: str = "",
        pipe: DiffusionPipeline | None = None,
        seed: int = 0,
        **inputs: Any,
    ) -> list[Image.Image]:
        """One picture for each row, from its own noise: the k-th seed of the row's concept.

        Args:
            *image_prompts: as many as act together, each with a reference for every row; none: the base
            text: for all rows
            pipe: another pipeline than the plain one
            seed: k
            **inputs: more for the pipeline; a list has a value for every row
        """
        call: Any = pipe or self.pipe
        settings = self.settings
        with self.adapter.attach(call):
            shown = self.adapter.references(*image_prompts) if image_prompts else None
            pictures = call(
                [text] * len(self.drawings),
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                generator=[
                    Generator().manual_seed(seed_of(drawing.concept, seed)) for drawing in self.drawings
                ],
                **inputs,
            ).images
        del shown
        return pictures


def chosen(held_out: HeldOut, count: int) -> list[Drawing]:
    """The featured drawings, then others by hash that no training drawing looks like."""
    known = {drawing.concept for drawing in held_out.drawings}
    featured = [held_out.reference(concept) for concept in FEATURED if concept in known]
    others = [one for one in held_out.references() if not one.is_twin and one not in featured]
    return [*featured, *others][:count]


def turned(values: Sequence[Any], places: int) -> list[Any]:
    """A list begun `places` further on."""
    places %= len(values)
    return [*values[places:], *values[:places]]


Advance = Callable[[], None]
