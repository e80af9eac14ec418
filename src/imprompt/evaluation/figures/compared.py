"""Figures that compare mechanisms: the paper's figures 3, 6 and 9, on one base."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imprompt.evaluation.figures.figure import Figure
from imprompt.evaluation.figures.page import COMPARED_NAME
from imprompt.evaluation.study import Results, Settings, Study, load_study, measured_runs
from imprompt.evaluation.study.comparing import (
    ASKED,
    CONTROL_GAP,
    EDGES,
    GAP,
    TEXT_GAP,
    Measure,
    Scores,
)
from imprompt.evaluation.study.runs import StudyRun, find_runs
from imprompt.evaluation.study.settings import CONTROL, IMAGE, TEXT


class _Compared(NamedTuple):
    """A comparison: its file, what it is, and what is measured."""

    name: str
    condition: str
    title: str
    promise: str
    measures: Sequence[Measure]


COMPARED = (
    _Compared(
        COMPARED_NAME,
        IMAGE,
        "Mechanisms compared (the paper’s figure 3)",
        "the decoupled adapter follows the image prompt at least as well as mechanisms that train the whole "
        "U-Net, and better than the one that puts image tokens behind the text’s.",
        (GAP,),
    ),
    _Compared(
        f"{COMPARED_NAME}-control",
        CONTROL,
        "Mechanisms with a control compared (the paper’s figure 6)",
        "the outline comes from the edges, the rest from the image prompt, best with the decoupled one.",
        (EDGES, CONTROL_GAP),
    ),
    _Compared(
        f"{COMPARED_NAME}-text",
        TEXT,
        "Mechanisms with text compared (the paper’s figure 9)",
        "the text and the image prompt are both followed; “replaced” cannot read the text.",
        (ASKED, TEXT_GAP),
    ),
)


def compared(runs: Path, weights: Path) -> tuple[list[Figure], str]:
    """The comparisons of all runs in a folder, and the runs' fingerprint.

    Those not yet measured are measured first, which takes long.

    Raises:
        ConfigError: no finished run there, or one that cannot be compared
    """
    found, _ = find_runs(runs)
    study = load_study(Settings(), weights)
    results = measured_runs(study, found, runs)
    return [comparison(study, results, one) for one in COMPARED], runs_fingerprint(found)


def comparison(study: Study, results: Results, asked: _Compared) -> Figure:
    """One figure: the first seed of each mechanism in the pictures, all of them in the numbers."""
    first = {name: min(seed for other, seed in results if other == name) for name, _ in results}
    count = study.count(asked.condition)
    columns = {"image prompt": study.references[:count]}
    if asked.condition == CONTROL:
        columns["edges"] = study.controls
    columns |= {name: list(results[name, seed].pictures[asked.condition]) for name, seed in first.items()}
    scores = Scores([score for measured in results.values() for score in measured.scores])
    settings = study.settings
    text = f"“{settings.asking}”" if asked.condition == TEXT else "no text"
    return Figure(
        name=asked.name,
        title=asked.title,
        promise=asked.promise,
        settings=f"all mechanisms on one base, with the same pictures, steps and batches; {text}, scale "
        f"{settings.scale}, {settings.steps} steps, {count} concepts behind each number",
        columns=columns,
        measured={
            measure.name: {name: scores.interval(name, measure) for name in scores.mechanisms}
            for measure in asked.measures
        },
    )


def runs_fingerprint(runs: Sequence[StudyRun]) -> str:
    """Twelve hexadecimal digits that change with any run's weights."""
    digests = sorted(run.digest for run in runs)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
