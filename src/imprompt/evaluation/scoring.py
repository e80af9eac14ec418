"""From pictures to scores, and from scores to figures with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.asking import Asked, Asking
from imprompt.evaluation.copying import copied
from imprompt.evaluation.grounds import border_colour, name_ground
from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    chance_within,
    clip_t,
    cosine_similarity,
    distances_to_others,
    normalised,
    retrieval_ranks,
    shuffled_gap,
)
from imprompt.evaluation.pictures import Drawing, HeldOut, caption_of, shuffled_place
from imprompt.evaluation.sampling import Pictures, Settings

PROMPTED, FLOOR, WITH_TEXT = "image prompt", "scale 0", "with text"
COPY, CODEC = "light copy", "autoencoder"
MAIN = (PROMPTED, FLOOR, WITH_TEXT, COPY, CODEC)
"""Conditions of the main table; the others belong to the curve over λ."""


@dataclass(frozen=True)
class Score:
    """One picture's scores.

    `similarity` is to the reference, `gap` how much more than to a shuffled one; `rank` is the right
    concept's place, from 0, among `gallery` concepts in the reference's style; `ground` is the colour
    word nearest to the border's colour; `is_twin` says that a training drawing looks like the reference.
    `scale` is λ, None for what was not generated. `asked_gap` says how much more the picture looks like
    what the base alone draws from the text beside its reference than from other texts, whether or not
    that text was given. `distance` is the mean distance to the other pictures of the same concept and
    condition, None where there is one. Where the judge reads text, `text_similarity` is to that text,
    `caption_similarity` to the reference's concept and style in words (CLIP-T of the paper). `copy_ratio`
    is that of the nearest to the second nearest training drawing, where those are at hand.
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
    asked_gap: float
    scale: float | None = None
    distance: float | None = None
    text_similarity: float | None = None
    caption_similarity: float | None = None
    copy_ratio: float | None = None

    @property
    def shuffled_similarity(self) -> float:
        """Similarity to a shuffled reference."""
        return self.similarity - self.gap


class Galleries:
    """Every held-out drawing on white, style by style, with the judge's features, computed once.

    Pictures are looked for among drawings in their reference's own style only: it gives nothing away.

    Args:
        held_out: all drawings
        judge: who scores
        asking: the texts beside references
        asked: what the base alone draws from each of them
        seen: the judge's features of all training drawings, icon set by icon set, if they are at hand
    """

    def __init__(
        self,
        held_out: HeldOut,
        judge: Judge,
        asking: Asking,
        asked: Asked,
        *,
        seen: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.judge, self.asking, self.asked, self.seen = judge, asking, asked, seen
        self._words: dict[str, Tensor] = {}
        self.drawings = {style: held_out.gallery(style) for style in held_out.styles}
        self.features = {
            style: judge.features([held_out.on_white(drawing) for drawing in drawings])
            for style, drawings in self.drawings.items()
        }

    def words(self, text: str) -> Float[Tensor, "1 dim"] | None:
        """The judge's features of a text, if the judge reads; computed once."""
        if not self.judge.reads_text:
            return None
        if text not in self._words:
            self._words[text] = self.judge.text_features([text])
        return self._words[text]


def score_pictures(
    galleries: Galleries,
    references: Sequence[Drawing],
    name: str,
    pictures: Pictures,
    *,
    scale: float | None = None,
) -> list[Score]:
    """Score every picture of a condition against its reference and all others of that style."""
    return [
        score
        for reference, several in zip(references, pictures, strict=True)
        for score in _score_concept(galleries, reference, name, several, scale)
    ]


def _score_concept(
    galleries: Galleries, reference: Drawing, name: str, several: list[Image.Image], scale: float | None
) -> list[Score]:
    gallery = galleries.drawings[reference.style]
    features = galleries.judge.features(several)
    similarity = cosine_similarity(features, galleries.features[reference.style])
    right = torch.full((len(several),), gallery.index(reference))
    gaps = shuffled_gap(similarity, right, shuffled_place(right, len(gallery)))
    ranks = retrieval_ranks(similarity, right)
    thing = galleries.asking.thing(reference.concept)
    asked = galleries.asked.gaps(features, thing)
    to_text = _to_words(features, galleries.words(galleries.asking.text(thing)))
    to_caption = _to_words(features, galleries.words(caption_of(reference)))
    ratios = copied(features, galleries.seen)
    distances = distances_to_others(features).tolist() if len(several) > 1 else [None]
    return [
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
            asked_gap=asked[seed],
            scale=scale,
            distance=distances[seed],
            text_similarity=to_text[seed],
            caption_similarity=to_caption[seed],
            copy_ratio=ratios[seed],
        )
        for seed, picture in enumerate(several)
    ]


def _to_words(
    features: Float[Tensor, "pictures dim"], words: Float[Tensor, "1 dim"] | None
) -> list[float | None]:
    """CLIP-T of each picture as a cosine; nothing without words."""
    if words is None:
        return [None] * len(features)
    return list(clip_t(features, words.expand(len(features), -1)).tolist())


def summarise(scores: Sequence[Score], settings: Settings) -> dict[str, Any]:
    """Every figure with its interval: of all concepts, and of those that no training drawing looks like."""
    unlike = [score for score in scores if not score.is_twin]
    return {
        "all": figures(scores),
        "without twins": figures(unlike) if unlike else None,
        "text": text_figures(scores, settings.asking.ground),
    }


def figures(scores: Sequence[Score]) -> dict[str, Any]:
    """Means over concepts, condition by condition, with chance."""
    rows = {name: condition_figures(under(scores, name)) for name in names(scores)}
    floor, ceiling = rows[FLOOR]["similarity"].mean, rows[COPY]["similarity"].mean
    prompted = under(scores, PROMPTED)
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
        "similarity to caption": over_known(scores, lambda score: score.caption_similarity),
    }


def text_figures(scores: Sequence[Score], ground: str) -> dict[str, Any]:
    """How many pictures stand on the ground that the text names, and how much of what it asks for they show.

    The same seeds without text stand beside it.
    """
    first = [score for score in scores if score.seed == 0]
    asked, plain = (under(first, name) for name in (WITH_TEXT, PROMPTED))
    return {
        "ground": ground,
        "with text": over_concepts(asked, lambda score: score.ground == ground),
        "without text": over_concepts(plain, lambda score: score.ground == ground),
        "asked gap with text": over_concepts(asked, lambda score: score.asked_gap),
        "asked gap without text": over_concepts(plain, lambda score: score.asked_gap),
        "similarity with text": over_known(asked, lambda score: score.text_similarity),
        "similarity without text": over_known(plain, lambda score: score.text_similarity),
    }


def under(scores: Sequence[Score], condition: str) -> list[Score]:
    """The scores of one condition."""
    return [score for score in scores if score.condition == condition]


def over_concepts(scores: Sequence[Score], value: Callable[[Score], float]) -> Interval:
    """A value's mean over each concept's pictures, then over concepts."""
    return bootstrap_interval(np.array(list(by_concept(scores, value).values())))


def by_concept(scores: Sequence[Score], value: Callable[[Score], float | None]) -> dict[str, float]:
    """A value's mean over each concept's pictures that have it, in the order in which concepts come."""
    values: dict[str, list[float]] = {}
    for score in scores:
        if (found := value(score)) is not None:
            values.setdefault(score.concept, []).append(float(found))
    return {concept: float(np.mean(several)) for concept, several in values.items()}


def over_known(scores: Sequence[Score], value: Callable[[Score], float | None]) -> Interval | None:
    """As `over_concepts`, of a value that not every score has; nothing if none has it."""
    values = by_concept(scores, value)
    return bootstrap_interval(np.array(list(values.values()))) if values else None


def names(scores: Sequence[Score]) -> list[str]:
    """The conditions, in the order in which they come."""
    return list(dict.fromkeys(score.condition for score in scores))
