"""The page of `dreambench`: fidelity and prompt following at every λ, the curve of both, and pictures."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprompt.evaluation.methods import METHODS
from imprompt.evaluation.metrics import (
    ScaleCurve,
    bootstrap_interval,
    cosine_similarity,
    scale_curve,
)
from imprompt.evaluation.suites.data import Subject
from imprompt.evaluation.suites.features import seen as shown_to
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.judges import Seat
from imprompt.evaluation.suites.runs import Drawn, fault_words, method_words, sampler_words
from imprompt.evaluation.suites.settings import DreamBenchSettings
from imprompt.report import (
    Cell,
    Chart,
    Grid,
    Interval,
    Line,
    PictureRow,
    Report,
    Section,
    Table,
)

REAL = "real pictures"

HOW = (
    "Fidelity is the mean cosine to all real pictures of the subject, and to those but the reference; prompt "
    "following the cosine to the prompt, without the unique token. The reference is the subject's first "
    "picture by name. Intervals are 95 % bootstraps over subjects."
)

CURVE = (
    "CP is fidelity, PF prompt following, both as cosines: compare CP · PF and the area between methods "
    "under the same judges and λ only. The area is that of all (CP, PF) which some λ reaches or betters."
)


def dreambench_report(
    asked: DreamBenchSettings,
    subjects: Sequence[Subject],
    drawn: Drawn,
    scores: Sequence[Any],
    real: dict[str, list[Tensor]],
    unreadable: int,
    folder: BenchmarkFolder,
) -> tuple[Report, dict[str, Any]]:
    """The page, and its figures for programs."""
    name = method_words(asked.method, METHODS[asked.method.name])
    reader, watcher = drawn.seats[0], drawn.seats[1 if len(drawn.seats) > 1 else 0]
    scales = list(asked.data.scales)
    figures = {
        seat.judge.name: figures_of([row for row in scores if row.judge == seat.judge.name], scales)
        | {REAL: between_real(real[seat.judge.name]), "is self": seat.is_self}
        for seat in drawn.seats
    }
    curve = curve_of(scores, reader, watcher, scales, [subject.name for subject in subjects])
    sections = [Section("Scores", HOW, [table_of(drawn.seats, figures, scales)])]
    if curve is not None:
        sections.append(Section("Over λ", CURVE, [chart_of(curve, watcher, reader), curve_table(curve)]))
    if grid := example_grid(asked, subjects, drawn, folder):
        sections.append(Section("Pictures", "The first prompt of each subject, the first sample.", [grid]))
    selves = [seat.judge.name for seat in drawn.seats if seat.is_self]
    warning = f" {', '.join(selves)} conditions the method itself: such columns say self." if selves else ""
    lead = (
        f"{name}: {len(subjects)} subjects, {len(drawn.tasks):,} pictures.{warning} "
        f"{fault_words(unreadable, len(drawn.failed))}"
    ).strip()
    report = Report(
        f"DreamBench: {name}", lead, sections, facts(asked, drawn), overline="imprompt evaluate dreambench"
    )
    return report, {
        "method": name,
        "subjects": len(subjects),
        "pictures": len(drawn.tasks),
        "unreadable": unreadable,
        "failed": len(drawn.failed),
        "judges": figures,
        "curve": None if curve is None else curve._asdict(),
    }


def figures_of(rows: Sequence[Any], scales: Sequence[float]) -> dict[str, Any]:
    """A judge's figures at every λ."""
    return {
        f"λ {scale:g}": {
            what: over_subjects([row for row in rows if row.scale == scale], what)
            for what in ("fidelity", "fidelity_others", "prompt_following")
        }
        for scale in scales
    }


def over_subjects(rows: Sequence[Any], what: str) -> Interval | None:
    """Mean over each subject's pictures, then over subjects; nothing where nothing was scored."""
    means = subject_means(rows, what)
    return bootstrap_interval(np.array(list(means.values()))) if means else None


def subject_means(rows: Sequence[Any], what: str) -> dict[str, float]:
    """A value's mean over each subject's pictures."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if getattr(row, what) is not None:
            values.setdefault(row.subject, []).append(getattr(row, what))
    return {subject: float(np.mean(several)) for subject, several in values.items()}


def between_real(real: Sequence[Tensor]) -> Interval:
    """Mean cosine between two different real pictures of one subject: the ceiling that is not a copy."""
    means = []
    for seen in real:
        similarity = cosine_similarity(seen, seen)
        means.append(
            float(torch.stack([similarity[i, j] for i, j in combinations(range(len(seen)), 2)]).mean())
        )
    return bootstrap_interval(np.array(means))


def curve_of(
    scores: Sequence[Any], reader: Seat, watcher: Seat, scales: Sequence[float], subjects: Sequence[str]
) -> ScaleCurve | None:
    """Prompt following by who reads, against fidelity by who watches; nothing if nobody reads."""
    if not reader.judge.reads_text:
        return None

    def means(judge: str, what: str) -> list[dict[str, float]]:
        mine = [row for row in scores if row.judge == judge]
        return [subject_means([row for row in mine if row.scale == scale], what) for scale in scales]

    prompt, reference = means(reader.judge.name, "prompt_following"), means(watcher.judge.name, "fidelity")
    kept = [name for name in subjects if all(name in one for one in (*prompt, *reference))]
    if not kept:
        return None
    pf, cp = (np.array([[one[name] for name in kept] for one in side]) for side in (prompt, reference))
    return scale_curve(np.array(scales), pf, cp)


def table_of(seats: Sequence[Seat], figures: dict[str, Any], scales: Sequence[float]) -> Table:
    """A row for each λ, and one of real pictures."""
    columns = [""]
    for seat in seats:
        columns += [seat.title, f"{seat.title}, others"]
        columns += [f"{seat.text_title} (cosine)"] if seat.judge.reads_text else []
    rows: list[list[Cell]] = []
    for name in [*(f"λ {scale:g}" for scale in scales), REAL]:
        cells: list[Cell] = [name]
        for seat in seats:
            found = figures[seat.judge.name][name]
            keys = ["fidelity", "fidelity_others"] + ["prompt_following"] * seat.judge.reads_text
            cells += [None, found, None][: len(keys)] if name == REAL else [found[key] for key in keys]
        rows.append(cells)
    note = "Real pictures are compared with one another: what a method without copying can reach."
    return Table(columns, rows, note=note, strong=(0,))


def chart_of(curve: ScaleCurve, watcher: Seat, reader: Seat) -> Chart:
    """Each λ as a point."""
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


def curve_table(curve: ScaleCurve) -> Table:
    """CP · PF at every λ, and the area."""
    rows: list[list[Cell]] = [
        [f"λ {scale:g}", cp, pf, product]
        for scale, cp, pf, product in zip(
            curve.scales, curve.reference, curve.prompt, curve.product, strict=True
        )
    ]
    return Table(["", "CP", "PF", "CP · PF"], [*rows, ["area", None, None, curve.area]], strong=(curve.best,))


def example_grid(
    asked: DreamBenchSettings, subjects: Sequence[Subject], drawn: Drawn, folder: BenchmarkFolder
) -> Grid | None:
    """The first subjects: reference, then one picture for each λ."""
    keys = {task.key: task for task in drawn.tasks}
    rows = []
    for subject in subjects[: 3 * asked.judging.shown]:
        width = len(str(len(subject.prompts) - 1))
        wanted = [f"{subject.name}-{0:0{width}d}-{scale:g}-0" for scale in asked.data.scales]
        if all(key in keys for key in wanted):
            pictures = [shown_to(folder.picture(key), "drawn") for key in wanted]
            rows.append(
                PictureRow([shown_to(subject.pictures[0], "square"), *pictures], keys[wanted[0]].text)
            )
    titles = ["reference", *(f"λ {scale:g}" for scale in asked.data.scales)]
    return Grid(titles, rows) if rows else None


def facts(asked: DreamBenchSettings, drawn: Drawn) -> dict[str, Any]:
    """How it was made."""
    published = METHODS[asked.method.name]
    said = {
        "base or pipeline": asked.method.model or published.model,
        "adapter": asked.method.adapter,
        "sampler": sampler_words(asked.drawing, published),
        "negative prompt": asked.drawing.negative_prompt,
        "size": f"{asked.drawing.size} px" if asked.drawing.size else "the model's own",
        "samples": asked.data.samples,
        "judges": ", ".join(seat.judge.name + (" (self)" if seat.is_self else "") for seat in drawn.seats),
        "remarks": "; ".join(remark for seat in drawn.seats for remark in seat.judge.remarks()),
    }
    return {name: value for name, value in said.items() if value != ""}
