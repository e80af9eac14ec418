"""The summary of the embedded model on the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from imprompt.evaluation.metrics import Interval


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """The summary as tables."""
    console = console or Console()
    for name, title in (("all", "all concepts"), ("without twins", "without twins of training drawings")):
        figures = summary[name]
        if figures:
            console.print(_table(title, figures))
    for line in _lines(summary):
        console.print(line, highlight=False)


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What no table says, a sentence each."""
    text, curve = summary["text"], summary["curve"]
    yield (
        f"ground: {_percent(text['with text'])} of pictures stand on {text['ground']} when the text says so, "
        f"{_percent(text['without text'])} without text"
    )
    yield (
        f"text: {_percent(curve['text'][-1])} of what it asks for stays at λ = {curve['scales'][-1]:g}; "
        f"alone, the base draws it with an asked gap of {curve['asked gap of the base']:.2f}"
    )
    yield (
        f"text and image together: best at λ = {curve['best scale']:g}, area under the curve "
        f"{_number(curve['area'])}"
    )
    if summary["diversity"] is not None:
        yield f"diversity: {_number(summary['diversity'])} mean cosine distance among a concept's seeds"
    yield f"KID × 1000: {'; '.join(f'{name} {_number(kid)}' for name, kid in summary['kid'].items())}"
    if summary["against"] is not None:
        for name, one in summary["against"]["differences"].items():
            yield f"against {summary['against']['adapter']}: {name} {one['difference'].signed}"
    if summary["copies"] is None:
        yield "copies: unknown without the training drawings, which `imprompt mini build-data` draws"
    else:
        shares = summary["copies"]["shares"].items()
        yield f"copies: {'; '.join(f'{name} {_percent(share)}' for name, share in shares)}"


def _table(title: str, figures: Mapping[str, Any]) -> Table:
    table = Table(title=f"{title}: {figures['concepts']}", title_justify="left")
    for heading in ("", "similarity", "gap to shuffled", "retrieval@1", "@5"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in figures["conditions"].items():
        cells = (_number(row["gap"]), _percent(row["retrieval@1"]), f"{row['retrieval@5'].mean:.0%}")
        table.add_row(name, f"{row['similarity'].mean:.3f}", *cells)
    table.add_section()
    table.add_row("chance", "", "", f"{figures['chance@1']:.1%}", f"{figures['chance@5']:.1%}")
    return table


def _number(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _percent(interval: Interval) -> str:
    return f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]"
