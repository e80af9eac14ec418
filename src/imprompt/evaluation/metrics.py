"""Metrics: pure functions over features and scores, with intervals.

    gap = cos(picture, its reference) - cos(picture, another reference)

A gap whose 95 % interval excludes 0 says that the image prompt acts at all; retrieval says how precisely.
Intervals are percentile bootstraps over concepts, the unit that was sampled: the pictures of one concept
share its difficulty.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

RESAMPLES = 10_000
CONFIDENCE = 0.95

TIE = 1e-6
"""Similarities closer than this are equal: two flags that are one flag differ in rounding only."""


class Interval(NamedTuple):
    """A mean, and where it lies with `CONFIDENCE` over the choice of concepts."""

    mean: float
    low: float
    high: float


def cosine_similarity(
    left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"]
) -> Float[Tensor, "left right"]:
    """Cosine of every left feature with every right one, computed in float64."""
    return F.normalize(left.double(), dim=-1) @ F.normalize(right.double(), dim=-1).T


def retrieval_ranks(
    similarity: Float[Tensor, "queries gallery"], right: Int[Tensor, " queries"]
) -> Int[Tensor, " queries"]:
    """How many wrong gallery items score at least as high as the right one: 0 is first, a tie counts against.

    Args:
        similarity: of each query with each gallery item
        right: the right item's column, for each query
    """
    own = similarity.gather(1, right[:, None])
    return (similarity >= own - TIE).sum(dim=1) - 1


def found_within(ranks: Int[Tensor, " queries"], k: int) -> Bool[Tensor, " queries"]:
    """Whether the right item is among the first k (retrieval@k, query by query)."""
    return ranks < k


def chance_within(gallery: int, k: int) -> float:
    """Retrieval@k of blind guessing."""
    return min(k / gallery, 1.0)


def shuffled_gap(
    similarity: Float[Tensor, "queries gallery"],
    right: Int[Tensor, " queries"],
    shuffled: Int[Tensor, " queries"],
) -> Float[Tensor, " queries"]:
    """Similarity to the true reference minus similarity to a shuffled one, query by query."""
    return (similarity.gather(1, right[:, None]) - similarity.gather(1, shuffled[:, None]))[:, 0]


def mean_distance(features: Float[Tensor, "pictures dim"]) -> float:
    """Mean cosine distance over all pairs of two or more pictures: 0 if they are all alike."""
    count = len(features)
    if count < 2:
        raise ValueError("a distance needs two pictures")
    similarity = cosine_similarity(features, features)
    off_diagonal = (similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1))
    return float(1 - off_diagonal)


def normalised(score: float, *, floor: float, ceiling: float) -> float:
    """Where a score lies between floor (0) and ceiling (1); NaN where these are the same."""
    return (score - floor) / (ceiling - floor) if ceiling != floor else float("nan")


def bootstrap_interval(
    values: Real[np.ndarray, " concepts"] | Bool[np.ndarray, " concepts"], *, seed: int = 0
) -> Interval:
    """Mean of one value per concept, with its bootstrap interval; the same seed, the same interval.

    Raises:
        ValueError: no values, or one that is not finite
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("an interval needs finite values, one for each concept")
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values.mean()), float(low), float(high))
