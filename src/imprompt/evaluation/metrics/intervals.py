"""How sure a mean is: percentile bootstraps over concepts.

    low, high = quantiles of mean(values drawn with replacement), 10,000 times

Concepts are the unit that was sampled: the pictures of one concept share its difficulty, so they are averaged
first. The same seed draws the same concepts, so intervals over the same concepts are of the same draws.
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
    """Mean of one value per concept, with its bootstrap interval; the same seed, the same interval.

    Pitfall: it is too narrow for a handful of concepts (of 10, four fifths of the t-interval).

    Raises:
        ValueError: no values, or one that is not finite
    """
    values = finite(values)
    means = np.concatenate([values[rows].mean(axis=1) for rows in draws(len(values), seed)])
    return spread(float(values.mean()), means)


def bootstrap_difference(
    left: Real[np.ndarray, "concepts ..."] | Bool[np.ndarray, "concepts ..."],
    right: Real[np.ndarray, "others ..."] | Bool[np.ndarray, "others ..."],
    *,
    seed: int = 0,
) -> Interval:
    """Mean of left - right, both measured on the same concepts, with its paired bootstrap interval.

    What makes a concept hard is hard for both and cancels: far narrower than the two intervals' difference.
    An interval without 0 says that they differ, over the choice of concepts.

    Args:
        left: a row for each concept, in the order of `right`; a row's values are averaged first
        right: the other method's
        seed: of the draws

    Raises:
        ValueError: not the same number of concepts, none, or values that are not finite
    """
    if len(left) != len(right):
        raise ValueError(f"a paired difference needs the same concepts: {len(left)} are not {len(right)}")
    one, other = (np.asarray(side, np.float64).reshape(len(side), -1).mean(axis=1) for side in (left, right))
    return bootstrap_interval(one - other, seed=seed)


def draws(count: int, seed: int) -> Iterator[Int[np.ndarray, "resamples {count}"]]:
    """`RESAMPLES` draws of `count` places with replacement, in pieces that fit into memory."""
    rng = np.random.default_rng(seed)
    size = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, RESAMPLES, size):
        yield rng.integers(count, size=(min(size, RESAMPLES - start), count))


def spread(mean: float, resampled: Float[np.ndarray, " resamples"]) -> Interval:
    """The interval that holds `CONFIDENCE` of the resampled means."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))


def finite(values: Real[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The values as float64.

    Raises:
        ValueError: no values, or one that is not finite
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("an interval needs finite values, one for each concept")
    return values
