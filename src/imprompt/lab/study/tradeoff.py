"""Text against image over the scale: which mechanism loses less of one for the other.

At a single scale, a mechanism that follows its image prompt more may only have a higher setting. The curve
over the scale shows all settings.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imprompt.evaluation.metrics import ScaleCurve, area_difference, scale_curve
from imprompt.lab.study.comparing import DECOUPLED, TEXT_FOLLOWED, TEXT_KEPT, Difference, StudyScores
from imprompt.report import Cell, Chart, Column, Line, Section, Table

AREA = "area of the trade-off"


class TradeOff(NamedTuple):
    """The trade-off of every mechanism that was drawn with text at all scales.

    Attributes:
        curves: by mechanism
        differences: of the areas, decoupled minus another, over the seeds of both
    """

    curves: Mapping[str, ScaleCurve]
    differences: Sequence[Difference]


def measure_tradeoff(scores: StudyScores, scales: Sequence[float]) -> TradeOff:
    """Measure the curves; their intervals are over characters, with seeds averaged."""
    both = {name: follow_both(scores, name, scales) for name in scores.mechanisms if len(scales) > 1}
    curves = {name: scale_curve(np.array(scales), *one) for name, one in both.items() if one is not None}
    others = [name for name in curves if name != DECOUPLED and scores.list_shared_seeds(name)]
    return TradeOff(curves, [compare_areas(scores, name, scales) for name in others if DECOUPLED in curves])


def follow_both(
    scores: StudyScores, mechanism: str, scales: Sequence[float], seeds: Sequence[int] | None = None
) -> Float[np.ndarray, "2 scales characters"] | None:
    """Return how far text and image prompt are followed; None for a mechanism without these scales."""
    tables = [
        [scores.build_table(mechanism, measure, seeds, scale) for scale in scales]
        for measure in (TEXT_FOLLOWED, TEXT_KEPT)
    ]
    if any(table is None for row in tables for table in row):
        return None
    return np.array([[table.mean(axis=1) for table in row if table is not None] for row in tables])


def compare_areas(scores: StudyScores, other: str, scales: Sequence[float]) -> Difference:
    """Return the decoupled curve's area minus another's."""

    def subtract(seeds: Sequence[int]) -> Difference:
        ours, theirs = (follow_both(scores, name, scales, seeds) for name in (DECOUPLED, other))
        assert ours is not None
        assert theirs is not None
        return Difference(AREA, other, area_difference(ours, theirs), [])

    seeds = scores.list_shared_seeds(other)
    by_seed = [subtract([seed]).interval.mean for seed in seeds]
    return subtract(seeds)._replace(by_seed=by_seed)


def build_tradeoff_section(tradeoff: TradeOff) -> Section:
    """Make the section of the page."""
    ordered = sorted(tradeoff.curves, key=lambda name: name == DECOUPLED)
    chart = Chart(
        "Text followed against the other attributes kept",
        "A dot for each scale. Best is the upper right.",
        [draw_curve(name, tradeoff.curves[name]) for name in ordered],
        x_label="others kept",
        y_label="text followed",
        is_scatter=True,
    )
    rows: list[list[Cell]] = [
        [name, curve.area, curve.scales[curve.best], curve.prompt[curve.best], curve.reference[curve.best]]
        for name, curve in tradeoff.curves.items()
    ]
    columns = [
        "mechanism",
        "area",
        Column("best scale", digits=2),
        Column("text followed there", percent=True),
        Column("others kept there", percent=True),
    ]
    note = "Area: of all pairs of shares that some scale reaches or betters in both, 1 at most."
    strong = [place for place, name in enumerate(tradeoff.curves) if name == DECOUPLED]
    return Section("Text against image over the scale", TEXT, [chart, Table(columns, rows, note, "", strong)])


TEXT = (
    "The same image prompts with the same texts at several scales. The scale is λ for decoupled; "
    "concatenated tokens and unCLIP’s embedding are multiplied by it; of two streams half of it is the "
    "image’s share."
)


def draw_curve(name: str, curve: ScaleCurve) -> Line:
    """Draw a mechanism's curve."""
    ours = name == DECOUPLED
    points = [(kept.mean, text.mean) for kept, text in zip(curve.reference, curve.prompt, strict=True)]
    names = [f"{scale:g}" if ours else "" for scale in curve.scales]
    return Line(name, points, "accent" if ours else "ink", names=names)
