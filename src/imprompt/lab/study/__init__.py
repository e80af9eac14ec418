"""The study of mechanisms: every way in which an image prompt can reach one base, and what each can do.

Table 1 of the paper compares methods on different bases and data. Here base, data, steps and batches are the
same (recipes/study.toml, scripts/study), and only the mechanism differs: `imprompt.training.mechanisms`.

    settings    what is generated for every run
    runs        the runs, and the stored results of those that have been measured
    measuring   a run → images and scores
    comparing   scores → figures, differences, verdicts
    tradeoff    text against image over the scale
    page        the report
"""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from imprompt import mini
from imprompt.errors import ConfigError
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.lab.study.comparing import DECOUPLED, MEASURES, Difference, StudyScores
from imprompt.lab.study.measuring import BASE_ALONE, Study, measure_drawings, measure_run, name_run
from imprompt.lab.study.page import Results, StudyFindings, build_report, write_verdict
from imprompt.lab.study.runs import (
    RunResult,
    StudyRun,
    build_result_key,
    find_runs,
    hash_weights,
    load_result,
    save_result,
)
from imprompt.lab.study.settings import SMALL, StudySettings
from imprompt.lab.study.tradeoff import measure_tradeoff
from imprompt.lab.suite.scoring import DRAWING
from imprompt.report import Grid, draw_sheet, write_picture, write_report, write_scores
from imprompt.runtime.output import make_folder
from imprompt.runtime.progress import show_progress

__all__ = [
    "BASE_ALONE",
    "Results",
    "Study",
    "StudyFindings",
    "StudySettings",
    "evaluate_study",
    "load_study",
    "measure_runs",
]

BASE_FOLDER = ".base"
"""The folder, inside the folder of runs, with the results of the base alone."""


def evaluate_study(
    *,
    runs: Path,
    output: Path,
    small: bool = False,
    weights: Path | None = None,
    settings: StudySettings | None = None,
) -> StudyFindings:
    """Measure every finished run in a folder, compare the mechanisms, and write the report.

    The results of a run are stored with its adapter, so a second call measures new runs only.

    Args:
        runs: a folder of folders that `imprompt train` has filled, as scripts/study does
        output: a folder for index.html, summary.json, scores and contact sheets; created if it does not exist
        small: use fewer characters and steps, for a first look
        weights: folder of the embedded model, if it is not the shipped one
        settings: how much is generated, in place of what `small` chooses

    Raises:
        ConfigError: there is no finished run, or one that cannot be compared
        OutputError: a folder cannot be written
        UnknownModel: a part of the embedded model cannot be found
        CheckpointError, AdapterMismatch: a run's file is damaged or does not fit
    """
    started = time.monotonic()
    finished, unfinished = find_runs(runs)
    make_folder(output)
    study = load_study(settings or (SMALL if small else StudySettings()), weights)
    results = measure_runs(study, finished, runs)
    found = [*results.values(), measure_drawings(study)]
    scores = StudyScores([score for one in found for score in one.scores])
    tradeoff = measure_tradeoff(scores, study.settings.text_scales)
    differences = [*compare_mechanisms(scores), *tradeoff.differences]
    verdict = write_verdict(finished, differences)
    seconds = round(time.monotonic() - started, 1)
    findings = StudyFindings(finished, unfinished, scores, differences, tradeoff, verdict, seconds)
    write_findings(study, findings, results, output)
    Console().print(verdict, highlight=False)
    return findings


def load_study(settings: StudySettings, weights: Path | None = None) -> Study:
    """Load what all runs are measured with.

    Raises:
        UnknownModel: there is no judge
    """
    folder = mini.WEIGHTS if weights is None else weights
    return Study(folder, settings, CharacterJudge.load(mini.find_part(folder, "judge")))


def measure_runs(study: Study, runs: Sequence[StudyRun], folder: Path) -> Results:
    """Return the results of the base alone and of each run; missing ones are measured and stored at once.

    Args:
        study: measures the runs
        runs: in the order of the tables
        folder: of the runs, and of the result of the base alone

    Raises:
        ConfigError: a run must be measured, but its weights have been deleted
    """
    weights = hash_weights(study.weights, study.settings.style)
    everything = (None, *runs)
    results: dict[tuple[str, int], RunResult] = {}
    missing: list[tuple[StudyRun | None, Path, str]] = []
    for run in everything:
        place = folder / BASE_FOLDER if run is None else run.folder
        key = build_result_key("" if run is None else run.digest, weights, study.settings)
        if (stored := load_result(place, key)) is None:
            check_weights(run)
            missing.append((run, place, key))
        else:
            results[name_run(run)] = stored
    with show_progress("pictures", sum(study.count_pictures(run) for run, _, _ in missing)) as advance:
        for run, place, key in missing:
            results[name_run(run)] = measure_run(study, run, advance)
            save_result(place, key, results[name_run(run)], run)
    return {name_run(run): results[name_run(run)] for run in everything}


def check_weights(run: StudyRun | None) -> None:
    """Refuse to measure a run whose weights have been deleted.

    Raises:
        ConfigError: they have been deleted
    """
    if run is not None and not run.path.is_file():
        raise ConfigError(
            f"{run.folder} was measured with other settings or another embedded model, and its weights have "
            "been deleted since: train it again"
        )


def compare_mechanisms(scores: StudyScores) -> list[Difference]:
    """Return decoupled minus every other mechanism, for every measure."""
    others = [name for name in scores.mechanisms if name not in (DECOUPLED, BASE_ALONE, DRAWING)]
    found = (scores.measure_difference(measure, other) for measure in MEASURES for other in others)
    return [one for one in found if one is not None]


def write_findings(study: Study, findings: StudyFindings, results: Results, output: Path) -> None:
    """Write the page, the summary, the scores, and each contact sheet as a file."""
    report = build_report(study, findings, results)
    grids = [block for section in report.sections for block in section.blocks if isinstance(block, Grid)]
    for grid in grids:
        name = re.sub(r"\W+", "-", grid.title.lower()).strip("-")
        write_picture(draw_sheet(grid.titles, grid.rows), output / f"{name}.png")
    write_scores(findings.scores.scores, output)
    write_report(report, output, summarize(study, findings))


def summarize(study: Study, findings: StudyFindings) -> dict[str, Any]:
    """Return what summary.json contains, without the page's numbers."""
    return {
        "suite": "study",
        "settings": asdict(study.settings),
        "seconds": findings.seconds,
        "verdict": findings.verdict,
        "runs": {
            run.folder.name: {
                "mechanism": run.mechanism,
                "seed": run.seed,
                "parameters": run.parameters,
                "steps": run.config["training"]["steps"],
                "adapter": run.digest,
            }
            for run in findings.runs
        },
        "differences": [{**one._asdict(), "verdict": one.verdict} for one in findings.differences],
    }
