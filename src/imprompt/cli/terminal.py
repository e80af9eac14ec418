"""Shared by all commands: options, tables, progress, interruption."""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer
from typer.exceptions import TyperException

from imprompt.errors import MissingExtra

if TYPE_CHECKING:
    from rich.console import Console


_WIDEST = 1000
"""Width of a table that is not printed on a terminal: more than its content, so that no line is broken."""


class WrongUsage(TyperException):
    """Options that exclude each other; reported on one line, with exit code 2."""

    exit_code = 2


def number_option(description: str, panel: str | None = None, *names: str) -> Any:
    """Return a number option whose error names the value, which typer's own error does not."""

    def parse(text: str | float) -> float:
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number") from None

    return typer.Option(*names, help=description, parser=parse, metavar="<number>", rich_help_panel=panel)


def complete_adapter(incomplete: str) -> list[str]:
    """Return the short names of adapters that begin with a text, for completion in a shell."""
    from imprompt.checkpoint.published import EMBEDDED, PUBLISHED

    return [name for name in (*EMBEDDED, *PUBLISHED) if name.startswith(incomplete)]


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process immediately, inside this context.

    An import may swallow a KeyboardInterrupt or turn it into another error. Nothing is written yet.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def quiet_libraries() -> None:
    """Keep the messages of other libraries off standard error.

    diffusers and transformers draw a bar for every folder of weights, and the hub's client reports every
    attempt to reach it. The bar of a download stays.
    """
    import diffusers.utils.logging
    import huggingface_hub.utils.logging
    import transformers.utils.logging

    huggingface_hub.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal; yield a function that advances it one step."""
    from rich.progress import Progress

    console = error_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("generating", total=steps)
        yield lambda: progress.advance(task)


def error_console() -> "Console":
    """Return the console on standard error."""
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
        for line in _format_lines(name, value):
            table.add_row(name.replace("_", " "), Text(line))
            name = ""
    Console().print(table)


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title over each column, as wide as the terminal; in a pipe, as wide as it needs.

    Words that are too long for a narrow terminal continue on the next line, and nothing is cut.
    """
    from rich.console import Console
    from rich.table import Column, Table

    # The first column holds words to be typed, so it is never broken.
    columns = [Column(title, overflow="fold", no_wrap=number == 0) for number, title in enumerate(titles)]
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    is_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if is_narrow else _WIDEST).print(table)


def _format_lines(name: str, value: Any) -> list[str]:
    """Return the lines that a table shows of a fact, without control codes that a file may hold."""
    if name == "layers":
        return [f"{len(value)} cross-attention layers"]
    if name == "parameters":
        return [f"{value:,}"]
    if isinstance(value, Mapping):
        return [f"{key}: {_format_item(inner)}" for key, inner in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_format_item(item) for item in value]
    return [_format_item(value)]


def _format_item(value: Any) -> str:
    if isinstance(value, Mapping):
        return join_lines(", ".join(f"{key}: {_format_item(inner)}" for key, inner in value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_format_item, value))
    return "" if value is None else join_lines(str(value))


def import_with_extra(module: str, extra: str) -> ModuleType:
    """Import a module of imprompt whose dependencies come with an extra.

    Raises:
        MissingExtra: a dependency is not installed
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("imprompt"):
            raise
        raise MissingExtra(error.name, extra) from error


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Pause the collection of cycles inside this context, and exempt the objects that it leaves behind.

    Importing diffusers and loading a model make about a million objects that live to the end of the process.
    Python would search them for cycles many times, and once more at exit: a quarter of the time from the
    command to a picture of the embedded model.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def print_written(path: Path, source: str | None = None) -> None:
    """Report that a file was written, and from which reference if there are many."""
    origin = "" if source is None else f" from {join_lines(source)}"
    typer.echo(f"wrote {join_lines(str(path))}{origin}")


def print_note(text: str) -> None:
    """Print a line on standard error about something that a user may not expect, and that is no error."""
    typer.echo(f"imprompt: {join_lines(text)}", err=True)


@contextlib.contextmanager
def print_warnings_as_notes() -> Iterator[None]:
    """Print warnings inside this context as one line each, without the place in the code that gave them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print_note(str(message))
        yield


def join_lines(text: str) -> str:
    """Return a text on one line, with '?' for every character that is not printable."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
