"""One adapter minus another, concept by concept: this report against an earlier one of the suite `mini`.

What makes a concept hard is hard for both and cancels: the difference tells apart what two intervals do not.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from imprompt.errors import ConfigError
from imprompt.evaluation.metrics import Interval, bootstrap_difference, bootstrap_interval
from imprompt.evaluation.report.files import SCORES_FILE, SUMMARY_FILE, plain
from imprompt.evaluation.scoring import PROMPTED, WITH_TEXT, Score, by_concept, under

ALIKE = ("seeds", "steps", "guidance_scale", "asking", "concepts")
"""Settings that two reports must share to be compared."""


class Measure(NamedTuple):
    """One figure of a picture.

    Attributes:
        name: what tables call it
        condition: in which pictures
        value: of one picture; None where it has none
    """

    name: str
    condition: str
    value: Callable[[Score], float | int | None]


MEASURES = (
    Measure("similarity", PROMPTED, lambda score: score.similarity),
    Measure("gap to shuffled", PROMPTED, lambda score: score.gap),
    Measure("found first", PROMPTED, lambda score: score.rank < 1),
    Measure("among the first five", PROMPTED, lambda score: score.rank < 5),
    Measure("diversity", PROMPTED, lambda score: score.distance),
    Measure("gap, with text", WITH_TEXT, lambda score: score.gap),
    Measure("what the text asks for", WITH_TEXT, lambda score: score.asked_gap),
)


@dataclass(frozen=True)
class Earlier:
    """An earlier report.

    Args:
        name: of its adapter
        scores: a line a picture
    """

    name: str
    scores: Sequence[Score]


def load_earlier(folder: Path, settings: Mapping[str, Any], judge: Mapping[str, Any]) -> Earlier:
    """Read a report that this one is to be compared with.

    Args:
        folder: as `evaluate_mini` wrote it
        settings: of this report
        judge: of this report

    Raises:
        ConfigError: no report of this suite, a damaged one, or one with other settings or another judge
    """
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        if summary["suite"] != "mini":
            raise ConfigError(f"{folder} is a report of the suite {summary['suite']!r}, not of 'mini'")
        name, theirs = summary["adapter"]["name"], dict(summary["settings"])
        fingerprint, scores = summary["judge"]["fingerprint"], _read_scores(folder / SCORES_FILE)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{folder} cannot be compared with: it holds no report that this version wrote ({error!r:.200})"
        ) from error
    ours = plain(settings)
    if differing := [key for key in ALIKE if ours[key] != theirs.get(key)]:
        key = differing[0]
        raise ConfigError(
            f"{folder} cannot be compared with: {key} was {theirs.get(key)!r} there and is {ours[key]!r} here"
        )
    if fingerprint != judge["fingerprint"]:
        raise ConfigError(f"{folder} cannot be compared with: another judge scored there")
    return Earlier(name, scores)


def _read_scores(path: Path) -> list[Score]:
    """What `write_scores` wrote; a cell without anything is None."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    return TypeAdapter(list[Score]).validate_python(rows)


def against_figures(scores: Sequence[Score], earlier: Earlier) -> dict[str, Any]:
    """Every measure that both reports have of every concept: here, there, and the one minus the other."""
    found = {}
    for measure in MEASURES:
        this, that = (
            by_concept(under(several, measure.condition), measure.value)
            for several in (scores, earlier.scores)
        )
        if this and this.keys() == that.keys():
            ours, theirs = (np.array([values[name] for name in sorted(this)]) for values in (this, that))
            found[measure.name] = {
                "this": bootstrap_interval(ours),
                "earlier": bootstrap_interval(theirs),
                "difference": bootstrap_difference(ours, theirs),
            }
    return {"adapter": earlier.name, "differences": found}


def verdict(difference: Interval) -> str:
    """What the interval of a difference says of this report: "more", "less", or "cannot be told"."""
    return "more" if difference.low > 0 else "less" if difference.high < 0 else "cannot be told"
