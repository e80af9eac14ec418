"""Prompt following against reference following over λ: a single λ hides what it gives up.

Reference following (concept preservation, CP) and prompt following (PF) are scores of the same images,
preferably normalized so that 0 is the floor and 1 the ceiling. As λ rises, CP rises and PF falls.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from imprompt.evaluation.metrics.intervals import (
    bootstrap_interval,
    check_finite,
    draw_resamples,
    quantile_interval,
)
from imprompt.report import Interval


class ScaleCurve(NamedTuple):
    """The result of `scale_curve`; intervals are over the choice of concepts.

    Attributes:
        scales: λ, in the order of the arguments
        prompt: PF at each λ
        reference: CP at each λ
        product: CP · PF at each λ, of the means (DreamBench++'s figure, arXiv 2406.16855); a mean below 0
            counts as 0
        area: see `dominated_area`
        best: place of the λ with the largest product
    """

    scales: list[float]
    prompt: list[Interval]
    reference: list[Interval]
    product: list[Interval]
    area: Interval
    best: int


def scale_curve(
    scales: Real[np.ndarray, " scales"],
    prompt: Real[np.ndarray, "scales concepts"],
    reference: Real[np.ndarray, "scales concepts"],
    *,
    seed: int = 0,
) -> ScaleCurve:
    """Return the curve of PF against CP over λ, its area and its products.

    Args:
        scales: λ
        prompt: PF of each concept at each λ, a mean over its images
        reference: CP of each concept at each λ
        seed: of the bootstrap

    Raises:
        ValueError: there is no λ or no concept, or a value is not finite
    """
    both = check_finite(np.stack([prompt, reference]))
    pf, cp = both.mean(axis=-1)
    drawn_pf, drawn_cp = _resample_means(both, seed)
    products = np.maximum(pf, 0) * np.maximum(cp, 0)
    drawn_products = np.maximum(drawn_pf, 0) * np.maximum(drawn_cp, 0)
    return ScaleCurve(
        scales=[float(scale) for scale in scales],
        prompt=[bootstrap_interval(row, seed=seed) for row in both[0]],
        reference=[bootstrap_interval(row, seed=seed) for row in both[1]],
        product=[
            quantile_interval(float(p), drawn) for p, drawn in zip(products, drawn_products, strict=True)
        ],
        area=quantile_interval(
            float(dominated_area(cp[:, None], pf[:, None])[0]), dominated_area(drawn_cp, drawn_pf)
        ),
        best=int(products.argmax()),
    )


def area_difference(
    left: Real[np.ndarray, "2 scales concepts"],
    right: Real[np.ndarray, "2 others strangers"],
    *,
    seed: int = 0,
) -> Interval:
    """Return the dominated area of one curve minus another's, with its paired interval over concepts.

    Args:
        left: PF and CP of each concept at each λ, as for `scale_curve`
        right: the other curve's, at the same λ
        seed: of the bootstrap

    Raises:
        ValueError: λ or concepts differ, or a value is not finite
    """
    if np.shape(left) != np.shape(right):
        raise ValueError(f"curves to be compared need the same λ and concepts: {left.shape}, {right.shape}")
    one, other = check_finite(left), check_finite(right)
    mean = _area(one.mean(axis=-1)[..., None]) - _area(other.mean(axis=-1)[..., None])
    return quantile_interval(
        float(mean[0]), _area(_resample_means(one, seed)) - _area(_resample_means(other, seed))
    )


def _resample_means(
    both: Float[np.ndarray, "2 scales concepts"], seed: int
) -> Float[np.ndarray, "2 scales resamples"]:
    """Return means over concepts drawn with replacement."""
    pieces = [both[..., rows].mean(axis=-1) for rows in draw_resamples(both.shape[-1], seed)]
    return np.concatenate(pieces, axis=-1)


def _area(both: Float[np.ndarray, "2 scales curves"]) -> Float[np.ndarray, " curves"]:
    """Return the dominated area of (PF, CP)."""
    return dominated_area(reference=both[1], prompt=both[0])


def dominated_area(
    reference: Float[np.ndarray, "scales curves"], prompt: Float[np.ndarray, "scales curves"]
) -> Float[np.ndarray, " curves"]:
    """Return the area of all (CP, PF) that some λ reaches in both: the union of rectangles from (0, 0).

    It is in [0, 1] for normalized scores; a score below 0 counts as 0. It never decreases when a λ is added,
    so compare over the same λ only.
    """
    cp, pf = np.maximum(reference, 0), np.maximum(prompt, 0)
    order = np.argsort(-cp, axis=0, kind="stable")
    cp, pf = (np.take_along_axis(values, order, axis=0) for values in (cp, pf))
    heights = np.maximum.accumulate(pf, axis=0)  # at CP up to cp[i], the best PF of all that keep as much
    widths = cp - np.concatenate([cp[1:], np.zeros_like(cp[:1])])
    return (widths * heights).sum(axis=0)
