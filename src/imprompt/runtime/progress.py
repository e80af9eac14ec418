"""A bar on standard error for what takes long, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def counted(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; gives what counts more of it."""
    with _bar(what, total, console) as update:
        yield lambda more: update(advance=more)


@contextmanager
def followed(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show how much is done; gives what is told how much that is, and how much there is."""
    with _bar(what, None, console) as update:
        yield lambda done, total: update(completed=done, total=total)


@contextmanager
def _bar(what: str, total: int | None, console: Console | None) -> Iterator[Callable[..., None]]:
    console = console or Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield partial(progress.update, progress.add_task(what, total=total))
