"""`imprompt evaluate`: run a suite and write its report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from imprompt.cli.terminal import import_with_extra, quiet_libraries
from imprompt.errors import ConfigError


class _Suite(NamedTuple):
    """The function of a suite, the options that it takes, and the one that it requires."""

    module: str
    function: str
    takes: tuple[str, ...] = ()
    requires: str = ""


_SUITES = {
    "mini": _Suite("lab.suite.measure", "evaluate_mini", ("weights", "adapter", "small", "against")),
    "figures": _Suite("lab.figures", "evaluate_figures", ("small",)),
    "study": _Suite("lab.study", "evaluate_study", ("runs", "small"), "runs"),
    "coco": _Suite("evaluation.suites.coco", "evaluate_coco", ("config", "settings"), "config"),
    "dreambench": _Suite(
        "evaluation.suites.dreambench", "evaluate_dreambench", ("config", "settings"), "config"
    ),
}
_OPTION_NAMES = {
    "config": "CONFIG",
    "settings": "--set",
    "weights": "--weights",
    "adapter": "--adapter",
    "runs": "--runs",
    "small": "--small",
    "against": "--against",
}
_REQUIRED = {
    "config": "a TOML file; recipes/{suite}.toml is one",
    "runs": "a folder made by scripts/study",
}


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(evaluate)


def evaluate(
    suite: Annotated[
        str,
        typer.Argument(
            help="mini: held-out characters on the embedded model; figures: the paper's figures in "
            "miniature; study: every mechanism of image prompting on one base; coco: the paper's Table 1; "
            "dreambench: subjects in scenes.",
            autocompletion=lambda: [*_SUITES],
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file: what to measure, on which data (suites coco and dreambench).", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("evaluation"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of the file: key=value. May be repeated."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an embedded model of your own, as imprompt mini train wrote it (suite mini)."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Adapter to measure (suite mini): mini, mini-plus, or a file for the embedded base or "
            "transformer. Default: mini."
        ),
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs to compare (suite study).")] = None,
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="Quick run of minutes, with fewer concepts (suites mini, figures and study)."
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an earlier report to compare with, character by character (suite mini)."
        ),
    ] = None,
) -> None:
    """Measure how well image prompts are followed; write a report: index.html, summary.json and scores.

    [bold]Examples[/bold]

    imprompt evaluate mini --output report

    imprompt evaluate mini --adapter runs/mini-adapter/adapter.safetensors --output mine --against report

    imprompt evaluate figures --output figures

    imprompt evaluate coco recipes/coco.toml --output coco-sd15 --set data.folder=/data/coco
    """
    options = {
        "config": config,
        "settings": settings,
        "weights": weights,
        "adapter": adapter,
        "runs": runs,
        "small": small,
        "against": against,
    }
    chosen = {name: value for name, value in options.items() if value}
    runner = _find_suite(suite, chosen)
    quiet_libraries()
    module = import_with_extra(f"imprompt.{runner.module}", "eval")
    getattr(module, runner.function)(output=output, **chosen)
    typer.echo(f"wrote {output}")


def _find_suite(suite: str, options: dict[str, Any]) -> _Suite:
    """Return the suite, if it takes these options and they include the one that it requires."""
    if suite not in _SUITES:
        raise ConfigError(f"there is no suite {suite!r}; the suites are: {', '.join(_SUITES)}")
    runner = _SUITES[suite]
    for name in options:
        if name not in runner.takes:
            takers = _join_names([other for other, one in _SUITES.items() if name in one.takes])
            raise ConfigError(
                f"{_OPTION_NAMES[name]} has no effect on the suite {suite!r}; it goes with {takers}"
            )
    if runner.requires and runner.requires not in options:
        what = _REQUIRED[runner.requires].format(suite=suite)
        raise ConfigError(f"the suite {suite!r} needs {_OPTION_NAMES[runner.requires]}, {what}")
    return runner


def _join_names(names: Sequence[str]) -> str:
    """Return "a", "a and b", or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
