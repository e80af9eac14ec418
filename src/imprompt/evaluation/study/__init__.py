"""The same-base study: every way of bringing an image prompt in, on one base, and what each can do.

Table 1 of the paper compares methods on different bases and data. Here base, data, steps and batches are the
same (recipes/study.toml, scripts/study), and what differs is the mechanism: `imprompt.injection`.

    settings    what is drawn of every run
    runs        the runs, and what is kept of those that have been measured
    measuring   a run → pictures and scores
    comparing   scores → figures, differences, verdicts
    balance     text against image over the scale
    page        the report
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from imprompt import mini
from imprompt.evaluation.figures.page import fingerprint
from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.pictures import load_held_out
from imprompt.evaluation.report import make_folder, write_report, write_scores
from imprompt.evaluation.study.comparing import NOTHING, Difference
from imprompt.evaluation.study.measuring import Study, measure
from imprompt.evaluation.study.page import Results, report_of
from imprompt.evaluation.study.runs import Measured, StudyRun, find_runs, keep, kept, key_of
from imprompt.evaluation.study.settings import SMALL, Settings
from imprompt.progress import counted

__all__ = [
    "NOTHING",
    "Results",
    "Settings",
    "Study",
    "evaluate_study",
    "load_study",
    "measured_runs",
]

BASE_FOLDER = ".base"
"""Where in the folder of runs the results of the base alone are kept."""


def evaluate_study(
    output: Path,
    runs: Path,
    small: bool = False,
    *,
    settings: Settings | None = None,
    weights: Path = mini.WEIGHTS,
) -> dict[str, Any]:
    """Measure every finished run in a folder, compare the mechanisms, and write the report.

    What is measured of a run is kept beside its adapter, so that a second call measures new runs only.

    Args:
        output: a folder for index.html, index-small.html, summary.json and scores; made if it is not there
        runs: a folder of folders that `imprompt train` has filled, as scripts/study does
        small: fewer concepts and steps, for a first look
        settings: how pictures are made, if not by one of these two
        weights: folder of the embedded model, if not the shipped one

    Returns:
        the summary, as in summary.json

    Raises:
        ConfigError: no finished run there, or one that cannot be compared
        OutputError: a folder cannot be written
        CheckpointError, AdapterMismatch: a run's file is not what it says
    """
    started = time.monotonic()
    chosen = settings or (SMALL if small else Settings())
    found, unfinished = find_runs(runs)
    make_folder(output)
    study = load_study(chosen, weights)
    results = measured_runs(study, found, runs)
    facts = {
        "runs": f"{len(found)}, in {runs.name}",
        "not finished": ", ".join(unfinished) or "none",
        "judge": f"{study.judge.name} ({study.judge.fingerprint})",
        **{name: str(value) for name, value in asdict(chosen).items()},
    }
    report, differences = report_of(study, found, results, facts)
    summary = {
        "suite": "study",
        "settings": asdict(chosen),
        "seconds": round(time.monotonic() - started, 1),
        "verdict": report.lead,
        "runs": {run.folder.name: told(run) for run in found},
        "differences": [said(one) for one in differences],
    }
    write_scores([score for one in results.values() for score in one.scores], output)
    write_report(report, output, summary)
    Console().print(report.lead, highlight=False)
    return summary


def load_study(settings: Settings, weights: Path = mini.WEIGHTS) -> Study:
    """What all runs are measured with.

    Raises:
        UnknownModel: some part of the embedded model is not there
    """
    return Study(weights, settings, load_judge(weights / "judge"), load_held_out())


def measured_runs(study: Study, found: Sequence[StudyRun], folder: Path) -> Results:
    """Results of the base alone and of each run; what is missing is measured, and kept at once.

    Args:
        study: what they are measured with
        found: the runs
        folder: where they are, and what is kept of the base alone
    """
    runs = [None, *sorted(found, key=place_of)]
    weights = fingerprint(study.weights)
    results: dict[tuple[str, int], Measured] = {}
    missing: list[tuple[StudyRun | None, Path, str]] = []
    for run in runs:
        place = folder / BASE_FOLDER if run is None else run.folder
        key = key_of("" if run is None else run.digest, weights, study.settings)
        if (known := kept(place, key)) is None:
            missing.append((run, place, key))
        else:
            results[name_of(run)] = known
    with counted("pictures", sum(study.count_pictures(run) for run, _, _ in missing)) as advance:
        for run, place, key in missing:
            results[name_of(run)] = measured_anew(study, run, place, key, advance)
    return {name_of(run): results[name_of(run)] for run in runs}


def measured_anew(
    study: Study, run: StudyRun | None, place: Path, key: str, advance: Callable[[int], None]
) -> Measured:
    """Measure a run and keep it."""
    result = measure(study, run, advance)
    make_folder(place)
    keep(place, key, result)
    return result


def name_of(run: StudyRun | None) -> tuple[str, int]:
    """A run's mechanism and seed; those of the base alone."""
    return (NOTHING, 0) if run is None else (run.mechanism, run.seed)


def place_of(run: StudyRun) -> tuple[int, int, str, int]:
    """Its place in tables: decoupled first, then those that leave the base alone, by size."""
    return run.injection != "decoupled", run.parameters, run.mechanism, run.seed


def told(run: StudyRun) -> dict[str, Any]:
    """A run in the summary."""
    facts = {"mechanism": run.mechanism, "seed": run.seed, "parameters": run.parameters}
    return {**facts, "steps": run.setting("training.steps"), "adapter": run.digest}


def said(difference: Difference) -> dict[str, Any]:
    """A difference in the summary."""
    return {
        "figure": difference.measure.name,
        "condition": difference.measure.condition,
        "decoupled minus": difference.other,
        "interval": difference.interval,
        "by seed": list(difference.by_seed),
        "decoupled is": difference.verdict,
    }
