"""Progress bars on standard error, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def show_progress(label: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` steps; yield a function that advances it by so many steps."""
    with _bar(label, total, console) as update:
        yield lambda more: update(advance=more)


@contextmanager
def show_running_total(label: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a bar whose total may change; yield a function that sets (done, total)."""
    with _bar(label, None, console) as update:
        yield lambda done, total: update(completed=done, total=total)


@contextmanager
def _bar(label: str, total: int | None, console: Console | None) -> Iterator[Callable[..., None]]:
    console = console or Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield partial(progress.update, progress.add_task(label, total=total))
