"""From pictures to scores, and from scores to figures with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from imprompt.evaluation.grounds import border_colour, name_ground
from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    chance_within,
    cosine_similarity,
    mean_distance,
    normalised,
    retrieval_ranks,
    shuffled_gap,
)
from imprompt.evaluation.pictures import Drawing, HeldOut, shuffled_place
from imprompt.evaluation.sampling import Settings

PROMPTED, FLOOR, WITH_TEXT = "image prompt", "scale 0", "with text"
COPY, CODEC = "light copy", "autoencoder"

Pictures = list[list[Image.Image]]
"""Several pictures of each reference."""


@dataclass(frozen=True)
class Score:
    """One picture's scores.

    `similarity` is to the reference, `gap` how much more than to a shuffled one; `rank` is the right
    concept's place, from 0, among `gallery` concepts in the reference's style; `ground` is the colour word
    nearest to the border's colour; `is_twin` says that a training drawing looks like the reference.
    """

    condition: str
    concept: str
    style: str
    is_twin: bool
    seed: int
    similarity: float
    gap: float
    rank: int
    gallery: int
    ground: str

    @property
    def shuffled_similarity(self) -> float:
        """Similarity to a shuffled reference."""
        return self.similarity - self.gap


class Galleries:
    """Every held-out drawing on white, style by style, with the judge's features, computed once.

    Pictures are looked for among drawings in their reference's own style only: it gives nothing away.
    """

    def __init__(self, held_out: HeldOut, judge: Judge) -> None:
        self.judge = judge
        self.drawings = {style: held_out.gallery(style) for style in held_out.styles}
        self.features = {
            style: judge.features([held_out.on_white(drawing) for drawing in drawings])
            for style, drawings in self.drawings.items()
        }


def score_pictures(
    galleries: Galleries, references: Sequence[Drawing], name: str, pictures: Pictures
) -> list[Score]:
    """Score every picture of a condition against its reference and all others of that style."""
    scores = []
    for reference, several in zip(references, pictures, strict=True):
        gallery = galleries.drawings[reference.style]
        features = galleries.judge.features(several)
        similarity = cosine_similarity(features, galleries.features[reference.style])
        right = torch.full((len(several),), gallery.index(reference))
        gaps = shuffled_gap(similarity, right, shuffled_place(right, len(gallery)))
        ranks = retrieval_ranks(similarity, right)
        scores += [
            Score(
                condition=name,
                concept=reference.concept,
                style=reference.style,
                is_twin=reference.is_twin,
                seed=seed,
                similarity=float(similarity[seed, right[seed]]),
                gap=float(gaps[seed]),
                rank=int(ranks[seed]),
                gallery=len(gallery),
                ground=name_ground(border_colour(picture)),
            )
            for seed, picture in enumerate(several)
        ]
    return scores


def diversity(judge: Judge, pictures: Pictures) -> Interval | None:
    """Mean distance among the pictures of one concept; nothing to say of one seed."""
    if len(pictures[0]) < 2:
        return None
    distances = [mean_distance(judge.features(several)) for several in pictures]
    return bootstrap_interval(np.array(distances))


def summarise(scores: Sequence[Score], settings: Settings) -> dict[str, Any]:
    """Every figure with its interval: of all concepts, and of those that no training drawing looks like."""
    unlike = [score for score in scores if not score.is_twin]
    return {
        "all": figures(scores),
        "without twins": figures(unlike) if unlike else None,
        "text": text_figures(scores, settings.ground),
    }


def figures(scores: Sequence[Score]) -> dict[str, Any]:
    """Means over concepts, condition by condition, with chance."""
    rows = {name: condition_figures([s for s in scores if s.condition == name]) for name in names(scores)}
    floor, ceiling = rows[FLOOR]["similarity"].mean, rows[COPY]["similarity"].mean
    prompted = [score for score in scores if score.condition == PROMPTED]
    return {
        "concepts": len({score.concept for score in scores}),
        "chance@1": float(np.mean([chance_within(score.gallery, 1) for score in prompted])),
        "chance@5": float(np.mean([chance_within(score.gallery, 5) for score in prompted])),
        "normalised similarity": normalised(rows[PROMPTED]["similarity"].mean, floor=floor, ceiling=ceiling),
        "conditions": rows,
    }


def condition_figures(scores: Sequence[Score]) -> dict[str, Any]:
    """One condition's figures."""
    return {
        "pictures": len(scores),
        "similarity": over_concepts(scores, lambda score: score.similarity),
        "shuffled similarity": over_concepts(scores, lambda score: score.shuffled_similarity),
        "gap": over_concepts(scores, lambda score: score.gap),
        "retrieval@1": over_concepts(scores, lambda score: score.rank < 1),
        "retrieval@5": over_concepts(scores, lambda score: score.rank < 5),
    }


def text_figures(scores: Sequence[Score], ground: str) -> dict[str, Any]:
    """How many pictures stand on the ground that the text names; the same seeds without text beside it."""
    first = [score for score in scores if score.seed == 0]

    def on_ground(name: str) -> Interval:
        return over_concepts([s for s in first if s.condition == name], lambda score: score.ground == ground)

    return {"ground": ground, "with text": on_ground(WITH_TEXT), "without text": on_ground(PROMPTED)}


def over_concepts(scores: Sequence[Score], value: Callable[[Score], float]) -> Interval:
    """A value's mean over each concept's pictures, then over concepts."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.concept, []).append(float(value(score)))
    return bootstrap_interval(np.array([np.mean(several) for several in values.values()]))


def names(scores: Sequence[Score]) -> list[str]:
    """The conditions, in the order in which they come."""
    return list(dict.fromkeys(score.condition for score in scores))
