"""Compare this report with an earlier one of the suite: paired differences over characters.

A difficult character is difficult for both reports, and this cancels. So a difference can be significant
where the two intervals overlap.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from imprompt.errors import ConfigError
from imprompt.evaluation.metrics import bootstrap_difference
from imprompt.lab.suite.images import SuiteSettings
from imprompt.lab.suite.scoring import PROMPTED, Comparison, Score
from imprompt.lab.suite.subjects import CHANGES, SPLITS, TEXT_SPLIT
from imprompt.report import SCORES_FILE, SUMMARY_FILE, Interval, to_plain


class SuiteMeasure(NamedTuple):
    """One figure at λ = 1: its name, the images that have it, and its value."""

    name: str
    split: str
    condition: str
    value: Callable[[Score], float]


@dataclass(frozen=True)
class EarlierReport:
    """A report to compare with: its adapter's name, and a score for each image."""

    name: str
    scores: Sequence[Score]


def load_earlier_report(folder: Path, settings: SuiteSettings) -> EarlierReport:
    """Read a report to be compared with one of these settings.

    Raises:
        ConfigError: it is no report of this suite, or has other settings
    """
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        name, theirs = summary["name"], summary["settings"]
        scores = read_scores(folder / SCORES_FILE)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{folder} cannot be compared with: it holds no report that this version of `imprompt evaluate "
            f"mini` wrote ({error!r:.200})"
        ) from error
    ours = to_plain(settings)
    if different := [key for key in ours if ours[key] != theirs.get(key)]:
        key = different[0]
        raise ConfigError(
            f"{folder} cannot be compared with: {key} was {theirs.get(key)!r} there and is {ours[key]!r} here"
        )
    return EarlierReport(name, scores)


def read_scores(path: Path) -> list[Score]:
    """Read what `write_scores` wrote; an empty cell is None, or "" in the column `wrong`."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            {key: value or ("" if key == "wrong" else None) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return TypeAdapter(list[Score]).validate_python(rows)


def list_measures() -> list[SuiteMeasure]:
    """List what is compared: attributes kept and references found by split, and both shares of each text."""

    def share(score: Score) -> float:
        return score.kept

    found = [
        SuiteMeasure(f"found first, unseen {one}", one, PROMPTED, lambda x: x.rank == 0) for one in SPLITS
    ]
    alone = [SuiteMeasure(f"kept, unseen {one}", one, PROMPTED, share) for one in SPLITS]
    asked = [SuiteMeasure(f"“{one}”: present", TEXT_SPLIT, one, lambda x: bool(x.asked)) for one in CHANGES]
    others = [SuiteMeasure(f"“{one}”: others kept", TEXT_SPLIT, one, share) for one in CHANGES]
    pairs = [*zip(alone, found, strict=True), *zip(asked, others, strict=True)]
    return [measure for pair in pairs for measure in pair]


def compare_scores(scores: Sequence[Score], earlier: EarlierReport) -> Comparison:
    """Return every measure at λ = 1 of this report minus the earlier one, over the characters of both."""
    differences: dict[str, Interval] = {}
    for measure in list_measures():
        ours, theirs = (values_of(several, measure) for several in (scores, earlier.scores))
        if ours and ours.keys() == theirs.keys():
            order = sorted(ours)
            this, that = (np.array([values[subject] for subject in order]) for values in (ours, theirs))
            differences[measure.name] = bootstrap_difference(this, that)
    return Comparison(earlier.name, differences)


def values_of(scores: Sequence[Score], measure: SuiteMeasure) -> dict[int, float]:
    """Return the measure of each character."""
    place = measure.split, measure.condition, 1.0
    fitting = (score for score in scores if (score.split, score.condition, score.scale) == place)
    return {score.subject: float(measure.value(score)) for score in fitting}
