"""Compare this report with an earlier one of the suite: paired differences over characters.

A difficult character is difficult for both reports, and this cancels. So a difference can be significant
where the two intervals overlap.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from imprompt.errors import ConfigError
from imprompt.evaluation.metrics import bootstrap_difference
from imprompt.lab.suite.painting import (
    SuiteSettings,
)
from imprompt.lab.suite.scoring import PROMPTED, Comparison, Score
from imprompt.lab.suite.subjects import CHANGES, SPLITS
from imprompt.report import (
    SCORES_FILE,
    SUMMARY_FILE,
    Interval,
    plain,
)


class SuiteMeasure(NamedTuple):
    """One figure of an image: its name, the images that have it, and its value."""

    name: str
    belongs: Callable[[Score], bool]
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
    ours = plain(asdict(settings))
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
    measures = []
    for split in SPLITS:

        def is_prompted(score: Score, split: str = split) -> bool:
            return score.split == split and score.condition == PROMPTED

        measures.append(SuiteMeasure(f"kept, unseen {split}", is_prompted, lambda score: score.kept))
        measures.append(
            SuiteMeasure(f"found first, unseen {split}", is_prompted, lambda score: score.rank == 0)
        )
    for name in CHANGES:

        def has_text(score: Score, name: str = name) -> bool:
            return score.condition == name and score.scale == 1.0

        measures.append(SuiteMeasure(f"“{name}”: present", has_text, lambda score: bool(score.asked)))
        measures.append(SuiteMeasure(f"“{name}”: others kept", has_text, lambda score: score.kept))
    return measures


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
    return {score.subject: float(measure.value(score)) for score in scores if measure.belongs(score)}
