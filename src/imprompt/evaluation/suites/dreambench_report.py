"""The results of `dreambench` and their page: fidelity and prompt following at every λ, and their curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprompt.evaluation.judges import LoadedJudge
from imprompt.evaluation.metrics import (
    ScaleCurve,
    bootstrap_interval,
    cosine_similarity,
    group_means,
    scale_curve,
)
from imprompt.evaluation.settings import DreamBenchSettings
from imprompt.evaluation.suites.data import DreamBenchSubject
from imprompt.evaluation.suites.features import prepare_view
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.runs import BenchmarkRun, describe_method, describe_run, write_lead
from imprompt.report import Cell, Chart, Grid, Interval, Line, PictureRow, Report, Section, Table

REAL = "real pictures"

FIGURES = ("fidelity", "fidelity_others", "prompt_following")

HOW = (
    "Fidelity is the mean cosine to all real pictures of the subject, and to those that are not the "
    "reference. Prompt following is the cosine to the prompt, without the unique token. The reference is the "
    "subject's first picture by name. Intervals are 95 % bootstraps over subjects."
)

CURVE = (
    "CP is fidelity, PF prompt following, both as cosines: compare CP · PF and the area between methods "
    "under the same judges and λ only. The area is that of all (CP, PF) which some λ reaches or betters."
)


@dataclass(frozen=True)
class FidelityFigures:
    """A judge's figures.

    Attributes:
        scales: "λ 0.5" → name in `FIGURES` → mean over subjects; None where nothing was scored
        real: mean cosine between two different real pictures of one subject: the ceiling without copying
        is_self: whether the judge is the encoder that conditions the method
    """

    scales: Mapping[str, Mapping[str, Interval | None]]
    real: Interval
    is_self: bool

    def to_json(self) -> dict[str, Any]:
        """Return the figures under their names in summary.json."""
        return {**self.scales, REAL: self.real, "is self": self.is_self}


@dataclass(frozen=True)
class DreamBenchResult:
    """The figures of a run: the method's name, the numbers of pictures, figures by every judge, the curve."""

    method: str
    subjects: int
    pictures: int
    unreadable: int
    failed: int
    judges: Mapping[str, FidelityFigures]
    curve: ScaleCurve | None


def build_result(
    options: DreamBenchSettings,
    subjects: Sequence[str],
    run: BenchmarkRun,
    scores: Sequence[Any],
    real: Mapping[str, Sequence[Tensor]],
    unreadable: int,
) -> DreamBenchResult:
    """Compute the figures of a run from its `SubjectScore` rows and the features of real pictures."""
    return DreamBenchResult(
        method=describe_method(options.method),
        subjects=len(subjects),
        pictures=len(run.tasks),
        unreadable=unreadable,
        failed=len(run.failed),
        judges={
            judge.name: FidelityFigures(
                summarize_scales([row for row in scores if row.judge == judge.name], options.data.scales),
                compare_real_pictures(real[judge.name]),
                judge.is_self,
            )
            for judge in run.judges
        },
        curve=measure_curve(scores, *choose_judges(run), options.data.scales, subjects),
    )


def choose_judges(run: BenchmarkRun) -> tuple[LoadedJudge, LoadedJudge]:
    """Return the judges of prompt following (the first one) and of fidelity (the second, if it exists)."""
    return run.judges[0], run.judges[1 if len(run.judges) > 1 else 0]


def summarize_scales(rows: Sequence[Any], scales: Sequence[float]) -> dict[str, dict[str, Interval | None]]:
    """Average a judge's scores at every λ over each subject's images, then over subjects."""
    return {
        f"λ {scale:g}": {
            what: bootstrap_interval(np.array([*means.values()])) if means else None
            for what in FIGURES
            for means in [average_by_subject(rows, what, scale)]
        }
        for scale in scales
    }


def average_by_subject(rows: Sequence[Any], what: str, scale: float) -> dict[str, float]:
    """Return the mean of a figure over each subject's images at one λ, subjects in sorted order."""
    pairs = [(row.subject, getattr(row, what)) for row in rows if row.scale == scale]
    pairs = [(subject, value) for subject, value in pairs if value is not None]
    if not pairs:
        return {}
    names, values = (np.array(column) for column in zip(*pairs, strict=True))
    return dict(zip(np.unique(names).tolist(), group_means(values, names).tolist(), strict=True))


def compare_real_pictures(real: Sequence[Tensor]) -> Interval:
    """Return the mean cosine between two different real pictures of one subject."""
    means = []
    for features in real:
        similarity = cosine_similarity(features, features)
        pairs = combinations(range(len(features)), 2)
        means.append(float(torch.stack([similarity[i, j] for i, j in pairs]).mean()))
    return bootstrap_interval(np.array(means))


def measure_curve(
    scores: Sequence[Any],
    reader: LoadedJudge,
    watcher: LoadedJudge,
    scales: Sequence[float],
    subjects: Sequence[str],
) -> ScaleCurve | None:
    """Measure prompt following by `reader` against fidelity by `watcher`; None if `reader` reads no text."""
    if not reader.reads_text:
        return None

    def means(judge: LoadedJudge, what: str) -> list[dict[str, float]]:
        rows = [row for row in scores if row.judge == judge.name]
        return [average_by_subject(rows, what, scale) for scale in scales]

    prompt, reference = means(reader, "prompt_following"), means(watcher, "fidelity")
    complete = [name for name in subjects if all(name in one for one in (*prompt, *reference))]
    if not complete:
        return None
    pf, cp = (np.array([[one[name] for name in complete] for one in side]) for side in (prompt, reference))
    return scale_curve(np.array(scales), pf, cp)


# The page


def build_report(
    options: DreamBenchSettings,
    subjects: Sequence[DreamBenchSubject],
    run: BenchmarkRun,
    result: DreamBenchResult,
    folder: BenchmarkFolder,
) -> Report:
    """Build the page."""
    sections = [Section("Scores", HOW, [build_scores_table(run.judges, result)])]
    if result.curve is not None:
        chart = build_curve_chart(result.curve, *choose_judges(run))
        sections.append(Section("Over λ", CURVE, [chart, build_curve_table(result.curve)]))
    if grid := build_grid(options, subjects, run, folder):
        sections.append(Section("Pictures", "The first prompt of each subject, the first sample.", [grid]))
    return Report(
        f"DreamBench: {result.method}",
        write_lead(f"{result.method}: {len(subjects)} subjects", run, result.unreadable),
        sections,
        describe_run(options, run, {"samples": options.data.samples}),
        overline="imprompt evaluate dreambench",
    )


def build_scores_table(judges: Sequence[LoadedJudge], result: DreamBenchResult) -> Table:
    """Make a table with a row for each λ, and one of real pictures."""
    columns = [""]
    for judge in judges:
        columns += [judge.title, f"{judge.title}, others"]
        columns += [f"{judge.text_title} (cosine)"] if judge.reads_text else []
    figures = [(result.judges[judge.name], FIGURES[: 2 + judge.reads_text]) for judge in judges]
    rows: list[list[Cell]] = [
        [scale, *(one.scales[scale][key] for one, keys in figures for key in keys)]
        for scale in figures[0][0].scales
    ]
    real = [cell for one, keys in figures for cell in [None, one.real, None][: len(keys)]]
    note = "Real pictures are compared with one another: what a method without copying can reach."
    return Table(columns, [*rows, [REAL, *real]], note=note, strong=(0,))


def build_curve_chart(curve: ScaleCurve, reader: LoadedJudge, watcher: LoadedJudge) -> Chart:
    """Draw each λ as a point."""
    line = Line(
        label="",
        points=[(cp.mean, pf.mean) for cp, pf in zip(curve.reference, curve.prompt, strict=True)],
        intervals=[(pf.low, pf.high) for pf in curve.prompt],
        x_intervals=[(cp.low, cp.high) for cp in curve.reference],
        names=[f"λ {scale:g}" for scale in curve.scales],
    )
    return Chart(
        title="prompt following against fidelity",
        note="Up and to the right is better.",
        lines=[line],
        x_label=f"fidelity ({watcher.title})",
        y_label=f"prompt following ({reader.text_title})",
        is_scatter=True,
    )


def build_curve_table(curve: ScaleCurve) -> Table:
    """Make the table of CP · PF at every λ, and of the area."""
    columns = zip(curve.scales, curve.reference, curve.prompt, curve.product, strict=True)
    rows: list[list[Cell]] = [[f"λ {scale:g}", cp, pf, product] for scale, cp, pf, product in columns]
    return Table(["", "CP", "PF", "CP · PF"], [*rows, ["area", None, None, curve.area]], strong=(curve.best,))


def build_grid(
    options: DreamBenchSettings,
    subjects: Sequence[DreamBenchSubject],
    run: BenchmarkRun,
    folder: BenchmarkFolder,
) -> Grid | None:
    """Show the first subjects: the reference, then one image for each λ."""
    tasks = {task.key: task for task in run.tasks}
    rows = []
    for subject in subjects[: 3 * options.judging.shown]:
        width = len(str(len(subject.prompts) - 1))
        keys = [f"{subject.name}-{0:0{width}d}-{scale:g}-0" for scale in options.data.scales]
        if all(key in tasks for key in keys):
            pictures = [prepare_view(folder.picture_path(key), "drawn") for key in keys]
            reference = prepare_view(subject.pictures[0], "square")
            rows.append(PictureRow([reference, *pictures], tasks[keys[0]].text))
    titles = ["reference", *(f"λ {scale:g}" for scale in options.data.scales)]
    return Grid(titles, rows) if rows else None
