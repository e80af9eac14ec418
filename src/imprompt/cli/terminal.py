"""What all commands share: options, tables, progress, interruption."""

import contextlib
import importlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer
from typer.exceptions import TyperException

from imprompt.errors import MissingExtra

if TYPE_CHECKING:
    from rich.console import Console


class WrongUsage(TyperException):
    """Options that do not go together; one line, exit code 2."""

    exit_code = 2


def number(description: str, panel: str | None = None, *names: str) -> Any:
    """Return a number option whose error, unlike typer's own, says what was typed."""

    def parse(text: str | float) -> float:
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number") from None

    return typer.Option(*names, help=description, parser=parse, metavar="<number>", rich_help_panel=panel)


@contextlib.contextmanager
def interrupted_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process then and there.

    An import may swallow a KeyboardInterrupt or turn it into another error; and nothing is written yet.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def silence_loading() -> None:
    """Leave standard error to us.

    diffusers and transformers draw a bar for every folder of weights, and the hub tells of every attempt to
    reach it; a download keeps its bar.
    """
    import diffusers.utils.logging
    import huggingface_hub.utils.logging
    import transformers.utils.logging

    huggingface_hub.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal; gives what advances it by one step."""
    from rich.progress import Progress

    console = error_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("generating", total=steps)
        yield lambda: progress.advance(task)


def error_console() -> "Console":
    """The console on standard error."""
    from rich.console import Console

    return Console(stderr=True)


def print_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values, as a table or as JSON."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in facts.items():
        for line in _lines(name, value):
            table.add_row(name.replace("_", " "), Text(line))
            name = ""
    Console().print(table)


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title over each column."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=None)
    # The first column is what will be typed: whole, however narrow the terminal.
    table.columns[0].min_width = max(len(row[0]) for row in rows)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _lines(name: str, value: Any) -> list[str]:
    """What a table shows of a fact; nothing that a file holds may send codes to the terminal."""
    if name == "layers":
        return [f"{len(value)} cross-attention layers"]
    if name == "parameters":
        return [f"{value:,}"]
    if isinstance(value, Mapping):
        return [f"{key}: {_item(inner)}" for key, inner in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_item(item) for item in value]
    return [_item(value)]


def _item(value: Any) -> str:
    if isinstance(value, Mapping):
        return one_line(", ".join(f"{key}: {_item(inner)}" for key, inner in value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_item, value))
    return "" if value is None else one_line(str(value))


def optional(module: str, extra: str) -> ModuleType:
    """Import a module of ours whose dependencies an extra brings."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("imprompt"):
            raise
        raise MissingExtra(error.name, extra) from error


def one_line(text: str) -> str:
    """Printable, on one line, whatever is in a file name."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
