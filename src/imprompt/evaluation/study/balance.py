"""Text against image over the scale: which mechanism gives up less of the one for the other.

At one scale a mechanism that follows its image prompt more may only have been turned up; the curve over the
scale shows what it can be turned to.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imprompt.evaluation.metrics import Interval, ScaleCurve, area_difference, scale_curve
from imprompt.evaluation.report import Cell, Column, Section, Table
from imprompt.evaluation.study.comparing import OURS, Scores, grouped, verdict_of
from imprompt.evaluation.study.settings import Settings
from imprompt.pages import Chart, Line


class Balance(NamedTuple):
    """Every mechanism that reads text.

    Attributes:
        curves: by mechanism
        areas: decoupled's area minus another's, over the seeds that both have; None if there are none
    """

    curves: Mapping[str, ScaleCurve]
    areas: Mapping[str, Interval | None]


def weigh(scores: Scores, settings: Settings) -> Balance:
    """Measure the curves; there are none where nothing was asked at other scales."""
    if not settings.scales:
        return Balance({}, {})
    names, scales = zip(*settings.text_conditions.items(), strict=True)
    curves = {
        name: scale_curve(np.array(scales), *both)
        for name in scores.mechanisms
        if (both := scores.following(name, names)) is not None
    }
    others = [name for name in curves if name != OURS and OURS in curves]
    return Balance(curves, {name: minus(scores, name, names) for name in others})


def minus(scores: Scores, other: str, conditions: Sequence[str]) -> Interval | None:
    """The decoupled curve's area minus another's, over the seeds that both have, if there are any."""
    if not (seeds := scores.shared_seeds(other)):
        return None
    ours, theirs = (scores.following(name, conditions, seeds) for name in (OURS, other))
    assert ours is not None
    assert theirs is not None
    return area_difference(ours, theirs)


def balance_section(balance: Balance) -> Section:
    """The section of the page."""
    blocks = [chart(balance.curves), area_table(balance), table(balance.curves)]
    return Section("Text against image over the scale", TEXT_OF, blocks)


def balance_sentences(balance: Balance) -> list[str]:
    """What the areas say, if there are any."""
    verdicts = {name: verdict_of(area) for name, area in balance.areas.items() if area is not None}
    return [f"With text, over the scale, its area is {grouped(verdicts)}."] if verdicts else []


TEXT_OF = (
    "The same references with the same texts at several scales. Text: how far what the text asks for is "
    "drawn, as a share of what the base alone draws of it. Image: the gap, as a share of a light copy’s. The "
    "scale is λ for decoupled; concatenated tokens and unCLIP’s embedding are multiplied by it; of two "
    "streams half of it is the image’s share."
)


def chart(curves: Mapping[str, ScaleCurve]) -> Chart:
    """A curve for each mechanism, the decoupled one on top."""
    ordered = sorted(curves, key=lambda name: name == OURS)
    return Chart(
        "What is kept of the text against what is kept of the image prompt",
        "A dot for each scale. Best is the upper right.",
        [line(name, curves[name]) for name in ordered],
        across="image",
        up="text",
        free=True,
    )


def line(name: str, curve: ScaleCurve) -> Line:
    """One mechanism's."""
    ours = name == OURS
    return Line(
        name,
        [(image.mean, text.mean) for image, text in zip(curve.reference, curve.prompt, strict=True)],
        "accent" if ours else "ink",
        names=[f"{scale:g}" if ours else "" for scale in curve.scales],
    )


def area_table(balance: Balance) -> Table:
    """The area that each curve dominates."""
    rows: list[list[Cell]] = [
        [name, curve.area, curve.scales[curve.best], curve.product[curve.best], balance.areas.get(name)]
        for name, curve in balance.curves.items()
    ]
    return Table(
        ["mechanism", "area", Column("best scale", digits=2), "product there", "decoupled’s area minus it"],
        rows,
        note="Area: of all shares of text and image that some scale reaches or betters, 1 at most.",
        strong=own_row(list(balance.curves)),
    )


def table(curves: Mapping[str, ScaleCurve]) -> Table:
    """Every point of every curve."""
    rows: list[list[Cell]] = [
        [name, scale, text, image, product]
        for name, curve in curves.items()
        for scale, text, image, product in zip(
            curve.scales, curve.prompt, curve.reference, curve.product, strict=True
        )
    ]
    return Table(["mechanism", Column("scale", digits=2), "text", "image", "product"], rows)


def own_row(names: Sequence[str]) -> list[int]:
    """Where the decoupled one is."""
    return [names.index(OURS)] if OURS in names else []
