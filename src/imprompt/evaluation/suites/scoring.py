"""Score images from their features: with the reference, with another reference, and with the captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprompt.evaluation.bounds import shuffle_places
from imprompt.evaluation.metrics import (
    bootstrap_interval,
    clip_t,
    cosine_similarity,
    group_means,
    mean_distance,
    paired_cosine,
    retrieval_ranks,
    shuffled_gap,
)
from imprompt.report import Interval

CHUNK = 1024
"""The number of images that are compared with all references at once."""


@dataclass(frozen=True)
class JudgeFeatures:
    """A judge's features of everything, of length one.

    Attributes:
        images: of every generated image
        owner: the place of each image's reference
        square: of every reference's middle square
        whole: of every whole reference
        copies: of a light copy of every square
        captions: of every reference's captions; None if the judge reads no text
    """

    images: Float[Tensor, "images dim"]
    owner: Int[Tensor, " images"]
    square: Float[Tensor, "references dim"]
    whole: Float[Tensor, "references dim"]
    copies: Float[Tensor, "references dim"]
    captions: list[Float[Tensor, "captions dim"]] | None

    @property
    def shuffled(self) -> Int[Tensor, " references"]:
        """The place of another reference, for each reference."""
        places = torch.arange(len(self.square))
        return shuffle_places(places, len(places))


@dataclass(frozen=True)
class SimilarityScores:
    """Scores of images, one number for each.

    Attributes:
        square: cosine to the reference's middle square
        whole: cosine to the whole reference
        gap: cosine to the reference minus cosine to another one
        rank: the reference's place, from 0, among all references
        first_caption: cosine to the first caption; None if the judge reads no text
        all_captions: mean cosine to all captions; None if the judge reads no text
    """

    square: Float[Tensor, " images"]
    whole: Float[Tensor, " images"]
    gap: Float[Tensor, " images"]
    rank: Int[Tensor, " images"]
    first_caption: Float[Tensor, " images"] | None
    all_captions: Float[Tensor, " images"] | None


def score_images(
    features: JudgeFeatures, images: Float[Tensor, "images dim"], owner: Int[Tensor, " images"]
) -> SimilarityScores:
    """Score images against their references.

    Args:
        features: of the references and captions
        images: features of what is scored: generated images, or references for floor and ceiling
        owner: the place of each image's reference
    """
    gaps, ranks = [], []
    for some, own in zip(images.split(CHUNK), owner.split(CHUNK), strict=True):
        similarity = cosine_similarity(some, features.square)
        gaps.append(shuffled_gap(similarity, own, features.shuffled[own]))
        ranks.append(retrieval_ranks(similarity, own))
    first, mean = _score_captions(features.captions, images, owner)
    return SimilarityScores(
        square=paired_cosine(images, features.square[owner]),
        whole=paired_cosine(images, features.whole[owner]),
        gap=torch.cat(gaps),
        rank=torch.cat(ranks),
        first_caption=first,
        all_captions=mean,
    )


def _score_captions(
    captions: list[Tensor] | None, images: Tensor, owner: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if captions is None:
        return None, None
    first = torch.stack([rows[0] for rows in captions])
    # Captions have length one, so the mean of the cosines is the product with their mean.
    mean = torch.stack([rows.double().mean(dim=0) for rows in captions])
    return clip_t(images, first[owner]), (images.double() * mean[owner]).sum(dim=-1)


def score_bounds(features: JudgeFeatures) -> dict[str, SimilarityScores]:
    """Score blind and nearly perfect answers: another reference, a light copy, the reference itself."""
    places = torch.arange(len(features.square))
    answers = {
        "another reference": features.square[features.shuffled],
        "light copy": features.copies,
        "the reference": features.square,
    }
    return {name: score_images(features, answer, places) for name, answer in answers.items()}


def average_over_references(
    values: Float[Tensor, " images"] | Bool[Tensor, " images"], owner: Int[Tensor, " images"]
) -> Interval:
    """Return the mean over each reference's images, then over references, with its interval."""
    return bootstrap_interval(group_means(values.double().numpy(), owner.numpy()))


def measure_diversity(images: Float[Tensor, "images dim"], owner: Int[Tensor, " images"]) -> Interval | None:
    """Return the mean distance among the images of one reference; None if no reference has two."""
    several = [torch.from_numpy(some) for some in split_by_owner(images.numpy(), owner) if len(some) > 1]
    return bootstrap_interval(np.array([mean_distance(some) for some in several])) if several else None


def split_by_owner(values: np.ndarray, owner: Tensor) -> Iterator[np.ndarray]:
    """Yield the rows of one reference at a time, references in order."""
    places = owner.numpy()
    for place in np.unique(places):
        yield values[places == place]


def find_first_of_each(owner: Int[Tensor, " images"]) -> list[int]:
    """Return the place of the first image of every reference that has one."""
    return np.unique(owner.numpy(), return_index=True)[1].tolist()
