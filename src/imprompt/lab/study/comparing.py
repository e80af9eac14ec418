"""Compare scores: each mechanism's figures, and decoupled minus every other one.

Intervals are bootstraps over characters and over seeds of training at once. One mechanism is called better
than another if the interval of the paired difference excludes 0, and the difference has the same sign for
every seed that both were trained with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imprompt.evaluation.metrics import RESAMPLES, group_means
from imprompt.evaluation.metrics.intervals import draw_resamples, quantile_interval
from imprompt.lab.study.runs import StudyScore
from imprompt.lab.study.settings import ALONE, CONTROL, SCALE, STYLE, TEXT
from imprompt.report import Interval
from imprompt.training.mechanisms import DecoupledMechanism

DECOUPLED = DecoupledMechanism.name

Table = Float[np.ndarray, "characters seeds"]


class StudyMeasure(NamedTuple):
    """One figure.

    Attributes:
        name: its name in tables
        condition: the images that have it
        value: its value for one score; None for an image without it
        percent: whether it is a share
    """

    name: str
    condition: str
    value: Callable[[StudyScore], float | int | None]
    percent: bool = True


KEPT = StudyMeasure("attributes kept", ALONE, lambda score: score.kept)
SIMILARITY = StudyMeasure("similarity", ALONE, lambda score: score.similarity, percent=False)
FOUND = StudyMeasure("found first", ALONE, lambda score: score.rank == 0)
DIVERSITY = StudyMeasure("diversity", ALONE, lambda score: score.diversity, percent=False)
TEXT_FOLLOWED = StudyMeasure("text followed", TEXT, lambda score: score.asked)
TEXT_KEPT = StudyMeasure("others kept with text", TEXT, lambda score: score.kept)
EDGES = StudyMeasure("edges followed", CONTROL, lambda score: score.edges, percent=False)
CONTROL_KEPT = StudyMeasure("colors kept with edges", CONTROL, lambda score: score.kept)
LINES = StudyMeasure("line drawing", STYLE, lambda score: score.lines)
STYLE_KEPT = StudyMeasure("parts kept as line drawing", STYLE, lambda score: score.kept)

MEASURES = (
    KEPT, SIMILARITY, FOUND, DIVERSITY, TEXT_FOLLOWED, TEXT_KEPT, EDGES, CONTROL_KEPT, LINES, STYLE_KEPT,
)  # fmt: skip


class Difference(NamedTuple):
    """Decoupled minus another mechanism.

    Attributes:
        measure: the figure's name
        other: the other mechanism
        interval: over characters and seeds
        by_seed: the mean for each seed that both have
    """

    measure: str
    other: str
    interval: Interval
    by_seed: Sequence[float]

    @property
    def verdict(self) -> str:
        """The decoupled one is "better" or "worse", or it "cannot be told"."""
        sign = self.interval.sign
        agreed = all(sign * one > 0 for one in self.by_seed)
        return {1: "better", -1: "worse"}.get(sign if agreed else 0, "cannot be told")

    @property
    def detectable(self) -> float:
        """About the smallest difference that would have been significant: half the interval's width."""
        return (self.interval.high - self.interval.low) / 2


class StudyScores:
    """All scores of a study."""

    def __init__(self, scores: Sequence[StudyScore]) -> None:
        self.scores = scores
        self.mechanisms = list(dict.fromkeys(score.mechanism for score in scores))
        self._groups: dict[tuple[str, int, str, float], list[StudyScore]] = {}
        for score in scores:
            key = score.mechanism, score.seed, score.condition, score.scale
            self._groups.setdefault(key, []).append(score)

    def list_seeds(self, mechanism: str) -> list[int]:
        """Return the seeds of a mechanism's runs."""
        return sorted({seed for name, seed, *_ in self._groups if name == mechanism})

    def list_shared_seeds(self, other: str) -> list[int]:
        """Return the seeds of both the decoupled runs and another mechanism's."""
        return [seed for seed in self.list_seeds(DECOUPLED) if seed in self.list_seeds(other)]

    def collect_values(
        self, mechanism: str, measure: StudyMeasure, seed: int, scale: float = SCALE
    ) -> list[float]:
        """Return a measure of one run for each character, in the order that all runs share.

        A character's images with several texts are averaged.
        """
        scores = self._groups.get((mechanism, seed, measure.condition, scale), ())
        pairs = [(score.subject, measure.value(score)) for score in scores]
        values = [(subject, float(value)) for subject, value in pairs if value is not None]
        subjects, figures = np.array(values).reshape(-1, 2).T
        return group_means(figures, subjects).tolist()

    def build_table(
        self, mechanism: str, measure: StudyMeasure, seeds: Sequence[int] | None = None, scale: float = SCALE
    ) -> Table | None:
        """Return a measure of all runs of a mechanism; None if they do not have it."""
        chosen = self.list_seeds(mechanism) if seeds is None else seeds
        columns = [self.collect_values(mechanism, measure, seed, scale) for seed in chosen]
        return np.array(columns).T if columns and columns[0] else None

    def measure_interval(self, mechanism: str, measure: StudyMeasure) -> Interval | None:
        """Return a mechanism's figure; None if its runs do not have it."""
        table = self.build_table(mechanism, measure)
        return None if table is None else bootstrap_both(table)

    def measure_difference(self, measure: StudyMeasure, other: str) -> Difference | None:
        """Return decoupled minus another mechanism on the seeds of both; None without such a figure."""
        seeds = self.list_shared_seeds(other)
        ours, theirs = (self.build_table(name, measure, seeds) for name in (DECOUPLED, other))
        if ours is None or theirs is None:
            return None
        gain = ours - theirs
        return Difference(measure.name, other, bootstrap_both(gain), gain.mean(axis=0).tolist())


def bootstrap_both(values: Table, *, seed: int = 0) -> Interval:
    """Return the mean with its bootstrap interval over characters and seeds of training."""
    means = np.concatenate([values[rows].mean(axis=1) for rows in draw_resamples(len(values), seed)])
    runs = np.random.default_rng([seed, 1]).integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
    return quantile_interval(float(values.mean()), np.take_along_axis(means, runs, axis=1).mean(axis=1))


def describe_verdicts(verdicts: Mapping[str, str]) -> str:
    """Group mechanisms by the verdict on the decoupled one: better than “A” and “B”, worse than “C”."""
    words = {
        "better": "better than {}",
        "worse": "worse than {}",
        "cannot be told": "not distinguishable from {}",
    }
    return ", ".join(
        phrase.format(join_names(others))
        for verdict, phrase in words.items()
        if (others := [other for other, one in verdicts.items() if one == verdict])
    )


def join_names(names: Sequence[str]) -> str:
    """Write “A”, “B” and “C”."""
    *before, last = (f"“{name}”" for name in names)
    return f"{', '.join(before)} and {last}" if before else last
