"""The figure page: the paper's figures in miniature, made by one command from what is in this package."""

from pathlib import Path

from rich.console import Console

from imprompt import mini
from imprompt.evaluation.figures.figure import Figure
from imprompt.evaluation.figures.page import write_figure, write_page
from imprompt.evaluation.figures.panels import PANELS
from imprompt.evaluation.figures.studio import Settings, Studio
from imprompt.evaluation.report import make_folder

__all__ = ["Settings", "evaluate_figures"]


def evaluate_figures(
    output: Path,
    *,
    runs: Path | None = None,
    settings: Settings | None = None,
    weights: Path = mini.WEIGHTS,
) -> list[Path]:
    """Make every figure and the page that says what each should show and whether it does.

    Args:
        output: a folder, made if it is not there; files of other names in it stay
        runs: a folder of runs, as scripts/study makes it, for figures that compare mechanisms; without it,
            those that a page in `output` has stay as they are
        settings: how many concepts, how many steps
        weights: folder of the embedded model

    Returns:
        the files written, the page first

    Raises:
        OutputError: the folder cannot be written
        UnknownModel: some part of the embedded model is not there
        MissingExtra: the fine-tuned base needs peft
        ConfigError: no finished run in `runs`
    """
    make_folder(output)
    settings = settings or Settings()
    studio, figures = Studio(weights, settings), []
    with Console(stderr=True).status("figures") as status:
        for number, panel in enumerate(PANELS, 1):
            status.update(f"figure {number} of {len(PANELS)}")
            figures.append(panel(studio))
            write_figure(figures[-1], settings.shown, output)
    digest = ""
    if runs is not None:
        compared_figures, digest = comparisons(runs, weights)
        for figure in compared_figures:
            figures.append(figure)
            write_figure(figure, settings.shown, output)
    write_page(figures, settings, weights, output, runs=digest)
    return [output / "README.md", *(output / f"{figure.name}.jpg" for figure in figures)]


def comparisons(runs: Path, weights: Path) -> tuple[list[Figure], str]:
    """Figures that compare the mechanisms of a study's runs, and the runs' fingerprint."""
    # Here, for the study stands on our measures.
    from imprompt.evaluation.figures.compared import compared

    return compared(runs, weights)
