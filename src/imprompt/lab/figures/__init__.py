"""`imprompt evaluate figures`: the paper's figures on the embedded model, each with a measured verdict.

    figures.toml    what every figure should show, and the thresholds of its numbers
    panels          the figures: columns of images, and their numbers
    images          unseen characters, and the images of a column
    people          people in another style, and the search for them
    measures        images → numbers
    figure          numbers → "yes", "partly", "no"
    page            the page with all figures

The figures that compare mechanisms (3, 6, 9 and 10 of the paper) belong to the study.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from imprompt import mini
from imprompt.lab.figures.figure import Figure
from imprompt.lab.figures.images import FigureImages, FigureSettings, sample_suitable
from imprompt.lab.figures.page import write_figures
from imprompt.lab.figures.panels import PANELS, draw_overview
from imprompt.lab.suite.images import SuiteModels
from imprompt.lab.suite.measure import load_models
from imprompt.lab.suite.scoring import average
from imprompt.lab.suite.showcase import CONTACTS, write_showcase
from imprompt.lab.suite.subjects import CHANGES, sample_subjects
from imprompt.runtime.output import make_folder
from imprompt.runtime.progress import show_progress

__all__ = ["FigureSettings", "evaluate_figures", "make_figures"]

SMALL = FigureSettings(subjects=12)
"""Settings that take a few minutes on two cores."""


def evaluate_figures(
    *,
    output: Path,
    weights: Path | None = None,
    small: bool = False,
    settings: FigureSettings | None = None,
) -> list[Figure]:
    """Make every figure, and the page that says what each should show and whether it does.

    `readme.png` and `contact-sheet.png` are written too. A hash chooses their characters.

    Args:
        output: a folder, created if it does not exist; files of other names in it stay
        weights: folder of the embedded model, if it is not the shipped one
        small: use fewer characters for every number
        settings: how many characters, and how images are generated, in place of what `small` chooses

    Returns:
        the figures, in the page's order

    Raises:
        OutputError: the folder cannot be written
        UnknownModel: a part of the embedded model cannot be found
        MissingExtra: a library that draws, or that the fine-tuned base needs, is not installed
    """
    make_folder(output)
    folder = mini.WEIGHTS if weights is None else weights
    models = load_models(folder)
    device = models.pipe.device
    models = replace(
        models,
        plus=mini.adapter("mini-plus", weights=folder).to(device),
        controlnet=cast(Any, mini.controlnet(weights=folder)).to(device),
        fine_tuned=mini.pipeline(style="lines", weights=folder).to(device),
    )
    settings = settings or (SMALL if small else FigureSettings())
    figures = make_figures(models, settings, output=output)
    write_showcase(models, sample_subjects("combinations", CONTACTS), settings.paint, output)
    return figures


def make_figures(models: SuiteModels, settings: FigureSettings, *, output: Path) -> list[Figure]:
    """Make the figures with any models; see `evaluate_figures`.

    Raises:
        UnknownModel: a part of `models` that a figure needs is None
    """
    # The overview shows this text beside every row.
    images = FigureImages(models, settings, sample_suitable([CHANGES["red ground"]], settings.subjects))
    figures: list[Figure] = []
    with show_progress("figures", len(PANELS)) as advance:
        for panel in PANELS:
            figures.append(panel(images))
            advance(1)
    figures.insert(0, draw_overview(images, {figure.name: figure for figure in figures}))
    accuracy = average(images.measure_kept([subject.picture for subject in images.subjects]))
    write_figures(figures, settings, accuracy, output)
    for figure in figures:
        Console().print(f"{figure.name}: {figure.verdict}", highlight=False)
    return figures
