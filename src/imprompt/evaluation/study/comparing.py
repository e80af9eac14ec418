"""From scores to what can be said: each mechanism's figures, and decoupled minus every other one.

A figure's interval is over concepts, the seeds of training averaged within each; how far the seeds' own means
lie apart is said beside it. One mechanism is called better than another where the interval of the paired
difference excludes 0 and the difference has the same sign for every seed that both were trained with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imprompt.evaluation.metrics import Interval, bootstrap_difference, bootstrap_interval
from imprompt.evaluation.study.runs import Score
from imprompt.evaluation.study.settings import CONTROL, IMAGE, STYLE, TEXT
from imprompt.injection import DecoupledInjection

OURS = DecoupledInjection.name

NOTHING = "no image prompt"
"""What tables call the base alone, which is measured like a run."""


class Measure(NamedTuple):
    """One figure.

    Attributes:
        name: what tables call it
        condition: in which pictures
        value: of one picture
        percent: whether it is a share
    """

    name: str
    condition: str
    value: Callable[[Score], float | int | bool]
    percent: bool = False


SIMILARITY = Measure("similarity", IMAGE, lambda score: score.similarity)
GAP = Measure("gap to shuffled", IMAGE, lambda score: score.gap)
FIRST = Measure("retrieval@1", IMAGE, lambda score: score.rank < 1, percent=True)
FIVE = Measure("retrieval@5", IMAGE, lambda score: score.rank < 5, percent=True)
CEILING = Measure("gap of a light copy", IMAGE, lambda score: score.ceiling)
CAPTION = Measure("CLIP-T", IMAGE, lambda score: score.caption)
ASKED = Measure("what the text asks for", TEXT, lambda score: score.asked_gap)
TEXT_GAP = Measure("gap, with text", TEXT, lambda score: score.gap)
PAPER = Measure("on blueprint paper", STYLE, lambda score: score.on_asked_ground, percent=True)
STYLE_GAP = Measure("gap, fine-tuned base", STYLE, lambda score: score.gap)
EDGES = Measure("edges", CONTROL, lambda score: score.edges)
CONTROL_GAP = Measure("gap, with control", CONTROL, lambda score: score.gap)

ALONE = (SIMILARITY, GAP, FIRST, FIVE, CAPTION)
TOGETHER = (ASKED, TEXT_GAP, PAPER, STYLE_GAP, EDGES, CONTROL_GAP)


class Difference(NamedTuple):
    """Decoupled minus another mechanism.

    Attributes:
        measure: of what
        other: the other mechanism
        interval: over concepts
        by_seed: the mean for each seed that both have
    """

    measure: Measure
    other: str
    interval: Interval
    by_seed: Sequence[float]

    @property
    def verdict(self) -> str:
        """What can be said of the decoupled one: "better", "worse", or "cannot be told"."""
        return verdict_of(self.interval, self.by_seed)


class Scores:
    """All scores of a study."""

    def __init__(self, scores: Sequence[Score]) -> None:
        self.scores = scores
        self.mechanisms = list(dict.fromkeys(score.mechanism for score in scores))

    def seeds(self, mechanism: str) -> list[int]:
        """Of a mechanism's runs."""
        return sorted({score.seed for score in self.scores if score.mechanism == mechanism})

    def shared_seeds(self, other: str) -> list[int]:
        """Of the decoupled runs and another mechanism's."""
        return [seed for seed in self.seeds(OURS) if seed in self.seeds(other)]

    def values(self, mechanism: str, measure: Measure, seed: int) -> Float[np.ndarray, " concepts"]:
        """A measure of one run, concept by concept, in the order that all runs share."""
        found = {
            score.concept: float(measure.value(score))
            for score in self.scores
            if (score.mechanism, score.seed, score.condition) == (mechanism, seed, measure.condition)
        }
        return np.array([found[concept] for concept in sorted(found)])

    def table(
        self, mechanism: str, measure: Measure, seeds: Sequence[int] | None = None
    ) -> Float[np.ndarray, "concepts seeds"]:
        """A measure of all runs of a mechanism."""
        chosen = self.seeds(mechanism) if seeds is None else seeds
        return np.stack([self.values(mechanism, measure, seed) for seed in chosen], axis=1)

    def interval(self, mechanism: str, measure: Measure) -> Interval | None:
        """A mechanism's figure; None where it cannot be had (no text tower, no control)."""
        values = self.table(mechanism, measure).mean(axis=1)
        return bootstrap_interval(values) if np.isfinite(values).all() else None

    def spread(self, mechanism: str, measure: Measure) -> float | None:
        """Standard deviation of the seeds' means; None of a single seed."""
        means = self.table(mechanism, measure).mean(axis=0)
        return float(means.std(ddof=1)) if len(means) > 1 else None

    def normalised(self, mechanism: str) -> float:
        """The gap between none (0) and that of light copies (1)."""
        return float(self.table(mechanism, GAP).mean() / self.table(mechanism, CEILING).mean())

    def following(
        self, mechanism: str, conditions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> Float[np.ndarray, "2 conditions concepts"] | None:
        """How far the text and how far the image prompt is followed; None of what was not asked with text.

        Text: the asked gap, of the base's own. Image: the gap, of a light copy's.
        """
        known = {score.condition for score in self.scores if score.mechanism == mechanism}
        if not known.issuperset(conditions):
            return None
        base, copy = (
            self.table(NOTHING, measure._replace(condition=TEXT)).mean() for measure in (ASKED, CEILING)
        )
        rows = [
            [
                self.table(mechanism, measure._replace(condition=condition), seeds).mean(axis=1) / whole
                for condition in conditions
            ]
            for measure, whole in ((ASKED, base), (TEXT_GAP, copy))
        ]
        return np.array(rows)

    def difference(self, measure: Measure, other: str) -> Difference | None:
        """Decoupled minus another one, on the seeds that both have; None where there is no such figure."""
        seeds = self.shared_seeds(other)
        if not seeds:
            return None
        ours, theirs = self.table(OURS, measure, seeds), self.table(other, measure, seeds)
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            return None
        by_seed = (ours - theirs).mean(axis=0).tolist()
        return Difference(measure, other, bootstrap_difference(ours, theirs), by_seed)


def verdict_of(interval: Interval, by_seed: Sequence[float] = ()) -> str:
    """What an interval of decoupled minus another says: "better", "worse", or "cannot be told".

    Every seed of training must agree.
    """
    if interval.low > 0 and all(one > 0 for one in by_seed):
        return "better"
    if interval.high < 0 and all(one < 0 for one in by_seed):
        return "worse"
    return "cannot be told"


def grouped(verdicts: Mapping[str, str]) -> str:
    """Other mechanisms by what can be said of the decoupled one: better than “A” and “B”, worse than “C”."""
    words = {"better": "better than {}", "worse": "worse than {}", "cannot be told": "not to be told from {}"}
    return ", ".join(
        phrase.format(listed(others))
        for verdict, phrase in words.items()
        if (others := [other for other, said in verdicts.items() if said == verdict])
    )


def listed(names: Sequence[str]) -> str:
    """“A”, “B” and “C”."""
    *before, last = (f"“{name}”" for name in names)
    return f"{', '.join(before)} and {last}" if before else last


def sentence(difference: Difference) -> str:
    """A difference in words, with its numbers."""
    seeds = len(difference.by_seed)
    said = {
        "better": f"decoupled is better than {difference.other}",
        "worse": f"decoupled is worse than {difference.other}",
        "cannot be told": f"whether decoupled is better or worse than {difference.other} cannot be told",
    }[difference.verdict]
    numbers = difference.interval.signed
    return f"{said} ({difference.measure.name} {numbers}, {seeds} seed{'s' if seeds > 1 else ''})"
