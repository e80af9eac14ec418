"""This report against an earlier one of the suite: differences, paired character by character.

What makes a character hard is hard for both reports and cancels, so a difference can be told where the two
intervals overlap.
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
from imprompt.lab.suite.findings import Comparison, SuiteSettings, name_scale
from imprompt.lab.suite.scoring import Score
from imprompt.lab.suite.subjects import CHANGES, SPLITS
from imprompt.report import (
    SCORES_FILE,
    SUMMARY_FILE,
    Interval,
    plain,
)

PROMPTED = name_scale(1.0)


class Measure(NamedTuple):
    """One figure of a picture: its name, in which pictures, and its value."""

    name: str
    belongs: Callable[[Score], bool]
    value: Callable[[Score], float]


@dataclass(frozen=True)
class EarlierReport:
    """A report that another is compared with: its adapter's name, and a score for each picture."""

    name: str
    scores: Sequence[Score]


def load_earlier_report(folder: Path, settings: SuiteSettings) -> EarlierReport:
    """Read a report that one with these settings is to be compared with.

    Raises:
        ConfigError: no report of this suite, or one with other settings
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
    """What `write_scores` wrote; a cell without anything is None, or nothing read wrongly."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            {key: value or ("" if key == "wrong" else None) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return TypeAdapter(list[Score]).validate_python(rows)


def list_measures() -> list[Measure]:
    """What is compared: attributes kept and references found, split by split; both halves of each text."""
    measures = []
    for split in SPLITS:

        def is_prompted(score: Score, split: str = split) -> bool:
            return score.split == split and score.condition == PROMPTED

        measures.append(Measure(f"kept, unseen {split}", is_prompted, lambda score: score.kept))
        measures.append(Measure(f"found first, unseen {split}", is_prompted, lambda score: score.rank == 0))
    for name in CHANGES:

        def has_text(score: Score, name: str = name) -> bool:
            return score.condition == name and score.scale == 1.0

        measures.append(Measure(f"“{name}”: present", has_text, lambda score: bool(score.asked)))
        measures.append(Measure(f"“{name}”: others kept", has_text, lambda score: score.kept))
    return measures


def compare_scores(scores: Sequence[Score], earlier: EarlierReport) -> Comparison:
    """Every measure at λ = 1: this report minus the earlier one, over the characters that both have."""
    differences: dict[str, Interval] = {}
    for measure in list_measures():
        ours, theirs = (values_of(several, measure) for several in (scores, earlier.scores))
        if ours and ours.keys() == theirs.keys():
            order = sorted(ours)
            this, that = (np.array([values[subject] for subject in order]) for values in (ours, theirs))
            differences[measure.name] = bootstrap_difference(this, that)
    return Comparison(earlier.name, differences)


def values_of(scores: Sequence[Score], measure: Measure) -> dict[int, float]:
    """Character → the measure."""
    return {score.subject: float(measure.value(score)) for score in scores if measure.belongs(score)}
