"""Dot plots as inline SVG: rows to be compared, each a dot with its interval, on one axis."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from imprompt.report.axes import Axis, move_apart, value_axis
from imprompt.report.charts import WIDTH, Ends, Tone, draw_text
from imprompt.report.numbers import format_value

_ROW, _TOP, _BOTTOM, _RIGHT = 24.0, 26.0, 26.0, 52.0
_LETTER = 6.3
"""The mean width of a letter."""

_MOST_LETTERS = 32


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot: its name, its value, the ends of its interval, and its color."""

    name: str
    value: float | int
    ends: Ends | None = None
    tone: Tone = "ink"


@dataclass(frozen=True)
class DotPlot:
    """Rows to be compared.

    Attributes:
        title: what the plot shows, with its unit
        note: a sentence that says how to read it
        dots: the rows, from the top
        marks: (name, value) of vertical lines through all rows, such as chance or a ceiling
        percent: whether values are shares, written in percent
        zero: whether the axis includes zero
    """

    title: str
    note: str
    dots: Sequence[Dot]
    marks: Sequence[tuple[str, float | int]] = ()
    percent: bool = False
    zero: bool = True


def draw_dots(plot: DotPlot) -> str:
    """Draw the rows as an SVG element; return "" if there is none."""
    if not plot.dots:
        return ""
    letters = max(len(_cut(dot.name)) for dot in plot.dots)
    height = _TOP + _ROW * len(plot.dots) + _BOTTOM
    x = value_axis(_values(plot), _LETTER * letters + 14, WIDTH - _RIGHT, zero=plot.zero, powers=False)
    foot = height - _BOTTOM
    parts = [
        _rules(x, plot, foot),
        _marks(x, plot, foot),
        *(_row(dot, _TOP + _ROW * (index + 0.5), x, plot) for index, dot in enumerate(plot.dots)),
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(plot.title)}">'
        f"{''.join(parts)}</svg>"
    )


def _values(plot: DotPlot) -> list[float | int]:
    values = [dot.value for dot in plot.dots] + [value for _, value in plot.marks]
    return values + [end for dot in plot.dots for end in dot.ends or ()]


def _rules(x: Axis, plot: DotPlot, foot: float | int) -> str:
    parts = []
    for value in x.ticks():
        left = x.position(value)
        kind = "zero" if plot.zero and abs(value) < 1e-12 else "rule"
        parts.append(f'<path class="{kind}" d="M{left:.1f} {_TOP:g}V{foot:g}"/>')
        parts.append(draw_text(left, foot + 17, x.format_tick(value, percent=plot.percent), "middle"))
    return "".join(parts)


def _marks(x: Axis, plot: DotPlot, foot: float | int) -> str:
    """Draw dashed lines with their names above them, moved apart."""
    marks = sorted(plot.marks, key=lambda mark: mark[1])
    width = max((len(name) for name, _ in marks), default=0) * _LETTER + 6
    centers = move_apart([x.position(value) for _, value in marks], width, x.start, x.end)
    return "".join(
        f'<path class="at" d="M{x.position(value):.1f} {_TOP - 6:g}V{foot:g}"/>'
        f"{draw_text(center, _TOP - 11, name, 'middle', 'name')}"
        for (name, value), center in zip(marks, centers, strict=True)
    )


def _row(dot: Dot, y: float | int, x: Axis, plot: DotPlot) -> str:
    style = f'class="{dot.tone}" style="--strength:1.00"'
    parts = [f"<g><title>{html.escape(_tooltip(dot, plot))}</title>"]
    parts.append(draw_text(x.start - 12, y + 4, _cut(dot.name), "end", f"label {dot.tone}"))
    if dot.ends is not None:
        low, high = (x.position(end) for end in dot.ends)
        parts.append(f'<path {style} d="M{low:.1f} {y:.1f}H{high:.1f}"/>')
    parts.append(f'<circle {style} cx="{x.position(dot.value):.1f}" cy="{y:.1f}" r="3.8"/>')
    parts.append(
        draw_text(WIDTH, y + 4, format_value(dot.value, percent=plot.percent), "end", f"label {dot.tone}")
    )
    return "".join(parts) + "</g>"


def _tooltip(dot: Dot, plot: DotPlot) -> str:
    value, *ends = (format_value(one, percent=plot.percent) for one in (dot.value, *(dot.ends or ())))
    return f"{dot.name}: {value}" + (f" [{', '.join(ends)}]" if ends else "")


def _cut(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
