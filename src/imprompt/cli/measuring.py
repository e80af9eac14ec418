"""`imprompt evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from imprompt.cli.terminal import optional, silence_loading
from imprompt.errors import ConfigError


class _Suite(NamedTuple):
    """Where a suite is, the options that it takes, and the one that it cannot do without."""

    module: str
    function: str
    takes: tuple[str, ...] = ()
    needs: str = ""


_SUITES = {
    "mini": _Suite("lab.suite.measure", "evaluate_mini", ("adapter", "small", "against")),
    "figures": _Suite("lab.figures", "evaluate_figures", ("small",)),
    "study": _Suite("lab.study", "evaluate_study", ("runs", "small"), "runs"),
    "coco": _Suite("evaluation.suites.coco", "evaluate_coco", ("config", "settings"), "config"),
    "dreambench": _Suite(
        "evaluation.suites.dreambench", "evaluate_dreambench", ("config", "settings"), "config"
    ),
}
_TYPED = {
    "config": "CONFIG",
    "settings": "--set",
    "adapter": "--adapter",
    "runs": "--runs",
    "small": "--small",
    "against": "--against",
}
_NEEDED = {
    "config": "a TOML file; recipes/{suite}.toml is one",
    "runs": "a folder that scripts/study has made",
}


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(evaluate)


def evaluate(
    suite: Annotated[
        str,
        typer.Argument(
            help="mini: characters never seen; figures: the paper's figures in miniature; study: every "
            "way of image prompting on one base; coco: the paper's Table 1; dreambench: subjects in scenes.",
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Argument(
            help="What to measure, on what: a TOML file; coco and dreambench.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value in place of what the file says; coco and dreambench."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="mini, mini-plus, or a file for the embedded base; mini.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs to compare; study.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Minutes in place of longer; mini, figures and study.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier report, to be compared with character by character; mini."),
    ] = None,
) -> None:
    """Measure how well image prompts are followed, and write a report: index.html, summary.json, scores.

    [bold]Examples[/bold]

    imprompt evaluate mini --output report

    imprompt evaluate mini --adapter runs/mini-adapter/adapter.safetensors --output mine --against report

    imprompt evaluate figures --output figures

    imprompt evaluate coco recipes/coco.toml --output coco-sd15 --set data.folder=/data/coco
    """
    given = {
        "config": config,
        "settings": settings,
        "adapter": adapter,
        "runs": runs,
        "small": small,
        "against": against,
    }
    asked = {name: value for name, value in given.items() if value}
    chosen = _checked(suite, asked)
    silence_loading()
    module = optional(f"imprompt.{chosen.module}", "eval")
    getattr(module, chosen.function)(output=output, **asked)
    typer.echo(f"wrote {output}")


def _checked(suite: str, asked: dict[str, Any]) -> _Suite:
    """The suite, if it takes what was given and was given what it needs."""
    if suite not in _SUITES:
        raise ConfigError(f"there is no suite {suite!r}; the suites are: {', '.join(_SUITES)}")
    chosen = _SUITES[suite]
    for name in asked:
        if name not in chosen.takes:
            takers = _listed([other for other, one in _SUITES.items() if name in one.takes])
            raise ConfigError(f"{_TYPED[name]} has no effect on the suite {suite!r}; it goes with {takers}")
    if chosen.needs and chosen.needs not in asked:
        what = _NEEDED[chosen.needs].format(suite=suite)
        raise ConfigError(f"the suite {suite!r} needs {_TYPED[chosen.needs]}, {what}")
    return chosen


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
