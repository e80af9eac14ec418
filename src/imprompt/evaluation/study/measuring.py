"""One run, measured: on its own base, with text, on a fine-tuned base, with a control."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from jaxtyping import Float
from PIL import Image

from imprompt import mini
from imprompt.embeddings import ImageEmbeddings
from imprompt.encoder import load_image_encoder
from imprompt.evaluation.asking import Asked, draw_examples
from imprompt.evaluation.figures.measures import correlations, own_minus_rest
from imprompt.evaluation.figures.panels import is_on, on_paper
from imprompt.evaluation.figures.studio import turned
from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import clip_t
from imprompt.evaluation.pictures import Drawing, HeldOut, light_copy
from imprompt.evaluation.sampling import seed_of
from imprompt.evaluation.scoring import COPY, Galleries, score_pictures
from imprompt.evaluation.study.comparing import NOTHING
from imprompt.evaluation.study.runs import Measured, Score, StudyRun
from imprompt.evaluation.study.settings import CONDITIONS, CONTROL, IMAGE, STYLE, TEXT, Settings
from imprompt.injection import MECHANISMS, Injection, load_injection
from imprompt.pipeline_results import call_pipeline

NEIGHBOUR = 3
"""The control is the drawing of the concept this many places on."""


@dataclass
class Study:
    """What is the same for all runs.

    Args:
        weights: folder of the embedded model
        settings: how pictures are made
        judge: scores them; not the encoder that conditions
        held_out: drawings of concepts that no part of the embedded model has seen
    """

    weights: Path
    settings: Settings
    judge: Judge
    held_out: HeldOut

    @cached_property
    def drawings(self) -> list[Drawing]:
        """One drawing of each concept, by hash, none that a training drawing looks like."""
        unseen = [one for one in self.held_out.references() if not one.is_twin]
        return unseen[: self.settings.concepts]

    @cached_property
    def references(self) -> list[Image.Image]:
        """The drawings on white."""
        return [self.held_out.on_white(drawing) for drawing in self.drawings]

    @cached_property
    def embeddings(self) -> list[ImageEmbeddings]:
        """Of the references, by the encoder that all runs were trained with."""
        encoder = load_image_encoder(mini.existing(self.weights / "image_encoder"))
        blank = encoder.blank("image_embedding").float()
        rows = encoder.encode(encoder.pixels(self.references)).float().split(1)
        return [ImageEmbeddings({"image_embedding": row}, {"image_embedding": blank}) for row in rows]

    @cached_property
    def galleries(self) -> Galleries:
        """Among which a picture's concept is looked for, and what the base alone draws from the texts."""
        examples = draw_examples(
            mini.pipeline(weights=self.weights),
            self.settings.asking,
            steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
        )
        asked = Asked(self.judge, examples)
        return Galleries(self.held_out, self.judge, self.settings.asking, asked)

    @cached_property
    def ceilings(self) -> list[float]:
        """The gap of a light copy of each reference."""
        copies = [[light_copy(one)] for one in self.references]
        return [score.gap for score in score_pictures(self.galleries, self.drawings, COPY, copies)]

    @cached_property
    def names(self) -> Float[torch.Tensor, "concepts dim"] | None:
        """The judge's features of the concepts' names, if it reads text."""
        if not self.judge.reads_text:
            return None
        return self.judge.text_features([drawing.concept for drawing in self.drawings])

    @cached_property
    def controls(self) -> list[Image.Image]:
        """Edges of another concept's drawing, for each of those that are drawn with a control."""
        return [mini.edge_picture(one) for one in turned(self.references[: self.settings.others], NEIGHBOUR)]

    def count(self, condition: str) -> int:
        """How many concepts are drawn in a condition."""
        return len(self.drawings) if condition == IMAGE else min(self.settings.others, len(self.drawings))

    def conditions(self, run: StudyRun | None) -> dict[str, float]:
        """What a run is asked, and at which scale; the base alone, and what reads no text, at one only."""
        asked: dict[str, float] = dict.fromkeys(CONDITIONS, self.settings.scale)
        if run is None or not MECHANISMS[run.injection].works_with_text:
            return asked
        return asked | self.settings.text_conditions

    def count_pictures(self, run: StudyRun | None) -> int:
        """In all conditions together."""
        return sum(map(self.count, self.conditions(run)))


def measure(study: Study, run: StudyRun | None, advance: Callable[[int], None]) -> Measured:
    """Draw and score everything that a run is asked; without a run, the base alone.

    Raises:
        CheckpointError, AdapterMismatch: its file is not what it says
    """
    pictures = {condition: draw(study, run, condition, advance) for condition in study.conditions(run)}
    scores = [score for condition, made in pictures.items() for score in scored(study, run, condition, made)]
    return Measured(scores, pictures)


# Drawing


def draw(
    study: Study, run: StudyRun | None, condition: str, advance: Callable[[int], None]
) -> list[Image.Image]:
    """One picture of each concept, from the same noise in every run and condition."""
    pipe, injection = placed(study, run, condition)
    made: list[Image.Image] = []
    for start in range(0, study.count(condition), study.settings.batch_size):
        rows = range(start, min(start + study.settings.batch_size, study.count(condition)))
        call = asked(study, condition, rows)
        if injection is None:
            made += call_pipeline(pipe, call)
        else:
            images = [study.embeddings[row] for row in rows]
            made += injection.pictures(pipe, images, study.conditions(run)[condition], call)
        advance(len(rows))
    return made


def placed(study: Study, run: StudyRun | None, condition: str) -> tuple[Any, Injection | None]:
    """The pipeline of a condition, with the run's mechanism on it.

    The fine-tuned base of a mechanism that trains the U-Net is its own U-Net with the style's change of
    weights added: what else would it be?
    """
    style = study.settings.style if condition == STYLE else None
    trains_base = run is not None and MECHANISMS[run.injection].trains_base
    pipe: Any = mini.pipeline(style=None if trains_base else style, weights=study.weights)
    injection = None if run is None else load_injection(run.path, pipe)
    if style is not None and trains_base:
        mini.fine_tune(pipe, style, study.weights)
    if condition == CONTROL:
        control = mini.controlnet(weights=study.weights)
        pipe = mini.as_pipeline(StableDiffusionControlNetPipeline, pipe, controlnet=control)
    return pipe, injection


def asked(study: Study, condition: str, rows: range) -> dict[str, Any]:
    """What a pipeline is called with."""
    settings, has_text = study.settings, condition.startswith(TEXT)
    drawings = [study.drawings[row] for row in rows]
    call: dict[str, Any] = {
        "prompt": [settings.asking.beside(one.concept) if has_text else "" for one in drawings],
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": [torch.Generator().manual_seed(seed_of(one.concept, 0)) for one in drawings],
    }
    if condition == CONTROL:
        call["image"] = [study.controls[row] for row in rows]
    return call


# Scoring


def scored(
    study: Study, run: StudyRun | None, condition: str, pictures: Sequence[Image.Image]
) -> list[Score]:
    """Every picture's scores."""
    drawings = study.drawings[: len(pictures)]
    likenesses = score_pictures(study.galleries, drawings, condition, [[one] for one in pictures])
    captions, ground = captioned(study, pictures), study.settings.asking.ground
    grounds = on_paper(pictures) if condition == STYLE else [is_on(ground, picture) for picture in pictures]
    edges = edge_gaps(study, pictures) if condition == CONTROL else np.full(len(pictures), np.nan)
    return [
        Score(
            mechanism=NOTHING if run is None else run.mechanism,
            seed=0 if run is None else run.seed,
            condition=condition,
            concept=drawing.concept,
            similarity=likenesses[place].similarity,
            gap=likenesses[place].gap,
            ceiling=study.ceilings[place],
            rank=likenesses[place].rank,
            gallery=likenesses[place].gallery,
            caption=captions[place],
            asked_gap=likenesses[place].asked_gap,
            on_asked_ground=grounds[place],
            edges=float(edges[place]),
        )
        for place, drawing in enumerate(drawings)
    ]


def captioned(study: Study, pictures: Sequence[Image.Image]) -> list[float]:
    """CLIP-T: each picture with its concept's name; NaN if the judge reads no text."""
    if study.names is None:
        return [float("nan")] * len(pictures)
    return clip_t(study.judge.features(pictures), study.names[: len(pictures)]).tolist()


def edge_gaps(study: Study, pictures: Sequence[Image.Image]) -> Float[np.ndarray, " pictures"]:
    """Correlation of each picture's edges with its control minus with the others'."""
    return own_minus_rest(correlations([mini.edge_picture(one) for one in pictures], study.controls))
