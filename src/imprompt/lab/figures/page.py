"""The page: every figure with what it should show, its numbers, and the verdict that follows from them."""

from collections.abc import Sequence
from pathlib import Path

from imprompt.lab.figures.figure import Criterion, Figure
from imprompt.lab.figures.images import FigureSettings
from imprompt.report import Interval
from imprompt.runtime.output import write_atomically

PAGE_FILE = "README.md"

QUALITY = 88
"""The quality of the JPEG files."""

INTRODUCTION = """\
# Figures

The paper’s figures in miniature, on the embedded model. All are made, this page and its verdicts too, by

    imprompt evaluate figures --output docs/figures

Behind each number are {subjects} characters of combinations of hair color, skin and hairdo that no part of
the model has ever seen; the first {shown} are shown, chosen by nobody. Where a figure needs a second
character, it is another unseen one of the same style, as unlike as possible, and of attributes only those
count in which the two differ. {steps} steps, guidance {guidance}; the noise is the same throughout a row,
unless a seed is named.

Attributes (style, hair color, skin, clothes, ground, hairdo, expression, glasses, beard) are read by the
judge, a network that has no part in making the pictures; in the drawings themselves it reads {accuracy}
of them. Correlations are of edges or gray values, both 32 px wide. In brackets: the 95 % interval.

Each number stands beside its *floor*, the same number of pictures that lack only what should make the
difference. **Yes**: every number reaches its threshold and is certainly above its floor (the interval of
the paired difference excludes 0). **Partly**: every number is certainly above its floor. **No**: some
number cannot be told from it. The thresholds stand in `src/imprompt/lab/figures/figures.toml`.

| figure | shows what it should |
| --- | --- |
{verdicts}
"""


def write_figures(
    figures: Sequence[Figure], settings: FigureSettings, accuracy: Interval, folder: Path
) -> None:
    """Write each figure's sheet as a JPEG file, and the page with all of them.

    Args:
        figures: in the page's order
        settings: how they were made
        accuracy: share of attributes that the judge reads in the drawings themselves
        folder: of all files; files of other names in it stay
    """
    for figure in figures:
        with write_atomically(folder / f"{figure.name}.jpg") as part:
            figure.draw_sheet(settings.shown).save(part, format="JPEG", quality=QUALITY)
    introduction = INTRODUCTION.format(
        subjects=settings.subjects,
        shown=min(settings.shown, settings.subjects),
        steps=settings.paint.steps,
        guidance=f"{settings.paint.guidance_scale:g}",
        accuracy=accuracy.percent,
        verdicts="\n".join(f"| {figure.texts['title']} | {figure.verdict} |" for figure in figures),
    )
    sections = [write_section(figure) for figure in figures]
    with write_atomically(folder / PAGE_FILE) as part:
        part.write_text("\n".join([introduction, *sections]), encoding="utf-8")


def write_section(figure: Figure) -> str:
    """Write one figure of the page."""
    title, promise, settings = (figure.texts[name] for name in ("title", "promise", "settings"))
    heading = "| measured | value | at least | floor | which is |\n| --- | --- | --- | --- | --- |"
    parts = [
        f"## {title}",
        f"Should show: {promise}",
        f"![{title}]({figure.name}.jpg)",
        f"**Does it? {figure.verdict.capitalize()}.**{explain_verdict(figure)}",
        "\n".join([heading, *(write_table_row(criterion) for criterion in figure.criteria.values())]),
        f"Made with: {settings}.",
    ]
    return "\n\n".join(parts) + "\n"


def explain_verdict(figure: Figure) -> str:
    """Write what is missing, in sentences; "" if nothing is."""
    faults: dict[str, list[str]] = {}
    for criterion in figure.criteria.values():
        if criterion.fault:
            faults.setdefault(criterion.fault, []).append(criterion.what)
    return "".join(f" {fault.capitalize()}: {'; '.join(whats)}." for fault, whats in faults.items())


def write_table_row(criterion: Criterion) -> str:
    """Write one number of a figure."""
    numbers = (criterion.value, criterion.least, criterion.floor)
    shown = " | ".join(criterion.show(number) for number in numbers)
    return f"| {criterion.what} | {shown} | {criterion.floor_name} |"
