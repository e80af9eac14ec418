"""`imprompt evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from imprompt.cli.terminal import optional, silence_loading
from imprompt.errors import ConfigError

_SUITES = {"mini": ("suites", "evaluate_mini"), "figures": ("figures", "evaluate_figures")}


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(evaluate)


def evaluate(
    suite: Annotated[
        str,
        typer.Argument(
            help="mini: held-out concepts, measured; figures: what the embedded model can do, in pictures.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
    adapter: Annotated[
        str | None, typer.Option(help="An adapter for the embedded base in place of its own; mini only.")
    ] = None,
) -> None:
    """Measure how well image prompts are followed, and write a report.

    [bold]Examples[/bold]

    imprompt evaluate mini --output report

    imprompt evaluate mini --adapter runs/emoji-adapter/adapter.safetensors

    imprompt evaluate figures --output figures
    """
    if suite not in _SUITES:
        raise ConfigError(f"there is no suite {suite!r}; the suites are: {', '.join(_SUITES)}")
    if adapter is not None and suite != "mini":
        raise ConfigError(f"--adapter has no effect on the suite {suite!r}; it goes with mini")
    silence_loading()
    module, function = _SUITES[suite]
    chosen = {} if adapter is None else {"adapter": adapter}
    getattr(optional(f"imprompt.evaluation.{module}", "eval"), function)(output=output, **chosen)
