"""How certain a mean is: percentile bootstraps over concepts.

    low, high = quantiles of mean(values drawn with replacement), 10,000 times

Concepts are what was sampled: the images of one concept share its difficulty, so they are averaged first. The
same seed draws the same concepts, so intervals over the same concepts use the same draws.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from imprompt.report import Interval

RESAMPLES = 10_000
CONFIDENCE = 0.95

DRAWN_AT_ONCE = 2_000_000
"""Numbers in memory at a time."""


def bootstrap_interval(
    values: Real[np.ndarray, " concepts"] | Bool[np.ndarray, " concepts"], *, seed: int = 0
) -> Interval:
    """Return the mean of one value per concept with its bootstrap interval, which `seed` determines.

    Pitfall: for a handful of concepts it is too narrow (for 10, four fifths of the t-interval).

    Raises:
        ValueError: there are no values, or one is not finite
    """
    values = check_finite(values)
    means = np.concatenate([values[rows].mean(axis=1) for rows in draw_resamples(len(values), seed)])
    return quantile_interval(float(values.mean()), means)


def bootstrap_difference(
    left: Real[np.ndarray, "concepts ..."] | Bool[np.ndarray, "concepts ..."],
    right: Real[np.ndarray, "others ..."] | Bool[np.ndarray, "others ..."],
    *,
    seed: int = 0,
) -> Interval:
    """Return the mean of left - right, measured on the same concepts, with its paired bootstrap interval.

    A difficult concept is difficult for both, and this cancels. So the interval is far narrower than the
    difference of two intervals. If it excludes 0, both sides differ, over the choice of concepts.

    Args:
        left: a row for each concept, in the order of `right`; a row's values are averaged first
        right: the other side
        seed: of the draws

    Raises:
        ValueError: the numbers of concepts differ or are 0, or a value is not finite
    """
    if len(left) != len(right):
        raise ValueError(f"a paired difference needs the same concepts: {len(left)} are not {len(right)}")
    one, other = (np.asarray(side, np.float64).reshape(len(side), -1).mean(axis=1) for side in (left, right))
    return bootstrap_interval(one - other, seed=seed)


def group_means(
    values: Real[np.ndarray, " values"] | Bool[np.ndarray, " values"], groups: np.ndarray
) -> Float[np.ndarray, " groups"]:
    """Return the mean of each group's values, groups in sorted order: one value per concept.

    Args:
        values: several for each concept
        groups: the concept of each value: a number or a name
    """
    values = np.asarray(values, np.float64)
    return np.array([values[groups == group].mean() for group in np.unique(groups)])


def draw_resamples(count: int, seed: int) -> Iterator[Int[np.ndarray, "resamples {count}"]]:
    """Yield `RESAMPLES` draws of `count` places with replacement, in pieces that fit into memory."""
    rng = np.random.default_rng(seed)
    size = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, RESAMPLES, size):
        yield rng.integers(count, size=(min(size, RESAMPLES - start), count))


def quantile_interval(mean: float, resampled: Float[np.ndarray, " resamples"]) -> Interval:
    """Return the interval that holds `CONFIDENCE` of the resampled means."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))


def check_finite(values: Real[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the values as float64.

    Raises:
        ValueError: there are no values, or one is not finite
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("an interval needs finite values, one for each concept")
    return values
