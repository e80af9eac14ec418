"""From features to scores: every picture with its reference, with another one, and with its captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprompt.evaluation.bounds import shuffled_place
from imprompt.evaluation.metrics import (
    bootstrap_interval,
    clip_t,
    cosine_similarity,
    mean_distance,
    paired_cosine,
    retrieval_ranks,
    shuffled_gap,
)
from imprompt.report import Interval

CHUNK = 1024
"""Pictures compared with all references at a time."""


@dataclass(frozen=True)
class Seen:
    """What a judge sees of everything, features of length one.

    Attributes:
        drawn: of every picture that was drawn
        owner: the place of each one's reference
        square: of every reference's middle square
        whole: of every whole reference
        copies: of a light copy of every square
        captions: of every reference's captions, if the judge reads text
    """

    drawn: Float[Tensor, "pictures dim"]
    owner: Int[Tensor, " pictures"]
    square: Float[Tensor, "references dim"]
    whole: Float[Tensor, "references dim"]
    copies: Float[Tensor, "references dim"]
    captions: list[Float[Tensor, "captions dim"]] | None

    @property
    def shuffled(self) -> Int[Tensor, " references"]:
        """The place of another reference, for each."""
        places = torch.arange(len(self.square))
        return shuffled_place(places, len(places))


@dataclass(frozen=True)
class Likeness:
    """Scores of pictures, one number for each.

    Attributes:
        square: cosine to the reference's middle square
        whole: cosine to the whole reference
        gap: how much nearer the reference is than another one
        rank: the reference's place, from 0, among all references
        first: cosine to the first caption
        mean: mean cosine to all captions
    """

    square: Float[Tensor, " pictures"]
    whole: Float[Tensor, " pictures"]
    gap: Float[Tensor, " pictures"]
    rank: Int[Tensor, " pictures"]
    first: Float[Tensor, " pictures"] | None
    mean: Float[Tensor, " pictures"] | None


def likeness(
    seen: Seen, pictures: Float[Tensor, "pictures dim"], owner: Int[Tensor, " pictures"]
) -> Likeness:
    """Score pictures against the references that they are of.

    Args:
        seen: the references and captions
        pictures: what is scored: what was drawn, or references themselves for floor and ceiling
        owner: the place of each one's reference
    """
    gaps, ranks = [], []
    for some, own in zip(pictures.split(CHUNK), owner.split(CHUNK), strict=True):
        similarity = cosine_similarity(some, seen.square)
        gaps.append(shuffled_gap(similarity, own, seen.shuffled[own]))
        ranks.append(retrieval_ranks(similarity, own))
    first, mean = _text(seen.captions, pictures, owner)
    return Likeness(
        square=paired_cosine(pictures, seen.square[owner]),
        whole=paired_cosine(pictures, seen.whole[owner]),
        gap=torch.cat(gaps),
        rank=torch.cat(ranks),
        first=first,
        mean=mean,
    )


def _text(
    captions: list[Tensor] | None, pictures: Tensor, owner: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if captions is None:
        return None, None
    first = torch.stack([rows[0] for rows in captions])
    # Captions have length one, so the mean of the cosines is the cosine-like product with their mean.
    mean = torch.stack([rows.double().mean(dim=0) for rows in captions])
    return clip_t(pictures, first[owner]), (pictures.double() * mean[owner]).sum(dim=-1)


def floor_and_ceiling(seen: Seen) -> dict[str, Likeness]:
    """What blind and nearly perfect answers score: another reference, a light copy, the reference itself."""
    places = torch.arange(len(seen.square))
    answers = {
        "another reference": seen.square[seen.shuffled],
        "light copy": seen.copies,
        "the reference": seen.square,
    }
    return {name: likeness(seen, answer, places) for name, answer in answers.items()}


def over_references(
    values: Float[Tensor, " pictures"] | Bool[Tensor, " pictures"], owner: Int[Tensor, " pictures"]
) -> Interval:
    """Mean over each reference's pictures, then over references, with its interval."""
    return bootstrap_interval(np.array([some.mean() for some in by_owner(values.double().numpy(), owner)]))


def diversity(drawn: Float[Tensor, "pictures dim"], owner: Int[Tensor, " pictures"]) -> Interval | None:
    """Mean distance among the pictures of one reference; nothing to say where each has one."""
    several = [torch.from_numpy(some) for some in by_owner(drawn.numpy(), owner) if len(some) > 1]
    return bootstrap_interval(np.array([mean_distance(some) for some in several])) if several else None


def by_owner(values: np.ndarray, owner: Tensor) -> Iterator[np.ndarray]:
    """Rows of one reference at a time, references in order."""
    places = owner.numpy()
    for place in np.unique(places):
        yield values[places == place]


def first_of_each(owner: Int[Tensor, " pictures"]) -> list[int]:
    """The place of the first picture of every reference that has one."""
    return np.unique(owner.numpy(), return_index=True)[1].tolist()
