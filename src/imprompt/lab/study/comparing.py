"""From scores to what can be said: each mechanism's figures, and decoupled minus every other one.

Intervals are bootstraps over characters and over seeds of training at once. One mechanism is called better
than another where the interval of the paired difference excludes 0 and the difference has the same sign for
every seed that both were trained with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imprompt.evaluation.metrics import RESAMPLES
from imprompt.evaluation.metrics.intervals import draw_resamples, quantile_interval
from imprompt.lab.study.runs import StudyScore
from imprompt.lab.study.settings import ALONE, CONTROL, SCALE, STYLE, TEXT
from imprompt.report import Interval
from imprompt.training.mechanisms import DecoupledMechanism

DECOUPLED = DecoupledMechanism.name

Table = Float[np.ndarray, "characters seeds"]


class Measure(NamedTuple):
    """One figure.

    Attributes:
        name: what tables call it
        condition: in which pictures
        value: of one picture; None where it has none
        percent: whether it is a share
    """

    name: str
    condition: str
    value: Callable[[StudyScore], float | int | None]
    percent: bool = True


KEPT = Measure("attributes kept", ALONE, lambda score: score.kept)
FOUND = Measure("found first", ALONE, lambda score: score.rank == 0)
DIVERSITY = Measure("diversity", ALONE, lambda score: score.diversity, percent=False)
TEXT_FOLLOWED = Measure("text followed", TEXT, lambda score: score.asked)
TEXT_KEPT = Measure("others kept with text", TEXT, lambda score: score.kept)
EDGES = Measure("edges followed", CONTROL, lambda score: score.edges, percent=False)
CONTROL_KEPT = Measure("colors kept with edges", CONTROL, lambda score: score.kept)
LINES = Measure("line drawing", STYLE, lambda score: score.lines)
STYLE_KEPT = Measure("parts kept as line drawing", STYLE, lambda score: score.kept)

MEASURES = (
    KEPT, FOUND, DIVERSITY, TEXT_FOLLOWED, TEXT_KEPT, EDGES, CONTROL_KEPT, LINES, STYLE_KEPT,
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
        """What can be said of the decoupled one: "better", "worse", or "cannot be told"."""
        if self.interval.low > 0 and all(one > 0 for one in self.by_seed):
            return "better"
        if self.interval.high < 0 and all(one < 0 for one in self.by_seed):
            return "worse"
        return "cannot be told"

    @property
    def detectable(self) -> float:
        """About the smallest difference that could have been told: half the interval's width."""
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

    def seeds(self, mechanism: str) -> list[int]:
        """Of a mechanism's runs."""
        return sorted({seed for name, seed, *_ in self._groups if name == mechanism})

    def shared_seeds(self, other: str) -> list[int]:
        """Of the decoupled runs and another mechanism's."""
        return [seed for seed in self.seeds(DECOUPLED) if seed in self.seeds(other)]

    def values(self, mechanism: str, measure: Measure, seed: int, scale: float = SCALE) -> list[float]:
        """A measure of one run, character by character, in the order that all runs share.

        A character's pictures with several texts are averaged.
        """
        values: dict[int, list[float]] = {}
        for score in self._groups.get((mechanism, seed, measure.condition, scale), ()):
            if (value := measure.value(score)) is not None:
                values.setdefault(score.subject, []).append(float(value))
        return [float(np.mean(values[subject])) for subject in sorted(values)]

    def table(
        self, mechanism: str, measure: Measure, seeds: Sequence[int] | None = None, scale: float = SCALE
    ) -> Table | None:
        """A measure of all runs of a mechanism; None where it cannot be had."""
        chosen = self.seeds(mechanism) if seeds is None else seeds
        columns = [self.values(mechanism, measure, seed, scale) for seed in chosen]
        return np.array(columns).T if columns and columns[0] else None

    def interval(self, mechanism: str, measure: Measure) -> Interval | None:
        """A mechanism's figure; None where it cannot be had."""
        table = self.table(mechanism, measure)
        return None if table is None else bootstrap_both(table)

    def difference(self, measure: Measure, other: str) -> Difference | None:
        """Decoupled minus another one, on the seeds that both have; None where there is no such figure."""
        seeds = self.shared_seeds(other)
        ours, theirs = (self.table(name, measure, seeds) for name in (DECOUPLED, other))
        if ours is None or theirs is None:
            return None
        gain = ours - theirs
        return Difference(measure.name, other, bootstrap_both(gain), gain.mean(axis=0).tolist())


def bootstrap_both(values: Table, *, seed: int = 0) -> Interval:
    """The mean, with its bootstrap interval over characters and seeds of training, both drawn anew."""
    means = np.concatenate([values[rows].mean(axis=1) for rows in draw_resamples(len(values), seed)])
    runs = np.random.default_rng([seed, 1]).integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
    return quantile_interval(float(values.mean()), np.take_along_axis(means, runs, axis=1).mean(axis=1))


def group_verdicts(verdicts: Mapping[str, str]) -> str:
    """Other mechanisms by what can be said of the decoupled one: better than “A” and “B”, worse than “C”."""
    words = {"better": "better than {}", "worse": "worse than {}", "cannot be told": "not to be told from {}"}
    return ", ".join(
        phrase.format(join_names(others))
        for verdict, phrase in words.items()
        if (others := [other for other, one in verdicts.items() if one == verdict])
    )


def join_names(names: Sequence[str]) -> str:
    """“A”, “B” and “C”."""
    *before, last = (f"“{name}”" for name in names)
    return f"{', '.join(before)} and {last}" if before else last
