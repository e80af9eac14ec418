"""Dots with intervals, row by row: what is to be compared, on one axis."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from imprompt.report.axes import Axis, short, shown, spread, tick, value_axis
from imprompt.report.charts import WIDTH, Ends, Tone

_ROW, _TOP, _BOTTOM, _RIGHT = 24.0, 26.0, 26.0, 52.0
_LETTER = 6.3
"""Mean width of a letter."""

_MOST_LETTERS = 32


@dataclass(frozen=True)
class Dot:
    """One row: its name, its value, between which ends it lies, and whether it is what matters."""

    name: str
    value: float | int
    ends: Ends | None = None
    tone: Tone = "ink"


@dataclass(frozen=True)
class DotPlot:
    """Rows to be compared.

    Attributes:
        title: what is drawn, with its unit
        note: how to read it; a sentence
        dots: the rows, from the top
        marks: values for all rows, each with its name: chance, a ceiling, ...
        percent: whether values are shares, shown in percent
        zero: whether zero belongs to the axis
    """

    title: str
    note: str
    dots: Sequence[Dot]
    marks: Sequence[tuple[str, float | int]] = ()
    percent: bool = False
    zero: bool = True


def draw_dots(plot: DotPlot) -> str:
    """The rows as an SVG element; without any an empty string."""
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
        place = x.place(value)
        kind = "zero" if plot.zero and abs(value) < 1e-12 else "rule"
        parts.append(f'<path class="{kind}" d="M{place:.1f} {_TOP:g}V{foot:g}"/>')
        parts.append(_text(place, foot + 17, tick(value, x, percent=plot.percent), "middle", "tick"))
    return "".join(parts)


def _marks(x: Axis, plot: DotPlot, foot: float | int) -> str:
    """Dashed lines, their names above them, apart from one another."""
    marks = sorted(plot.marks, key=lambda mark: mark[1])
    room = max((len(name) for name, _ in marks), default=0) * _LETTER + 6
    places = spread([x.place(value) for _, value in marks], room, x.start, x.end)
    return "".join(
        f'<path class="at" d="M{x.place(value):.1f} {_TOP - 6:g}V{foot:g}"/>'
        f"{_text(place, _TOP - 11, name, 'middle', 'name')}"
        for (name, value), place in zip(marks, places, strict=True)
    )


def _row(dot: Dot, y: float | int, x: Axis, plot: DotPlot) -> str:
    style = f'class="{dot.tone}" style="--strength:1.00"'
    parts = [f"<g><title>{html.escape(_said(dot, plot))}</title>"]
    parts.append(_text(x.start - 12, y + 4, _cut(dot.name), "end", f"label {dot.tone}"))
    if dot.ends is not None:
        low, high = (x.place(end) for end in dot.ends)
        parts.append(f'<path {style} d="M{low:.1f} {y:.1f}H{high:.1f}"/>')
    parts.append(f'<circle {style} cx="{x.place(dot.value):.1f}" cy="{y:.1f}" r="3.8"/>')
    parts.append(_text(WIDTH, y + 4, _value(dot.value, plot), "end", f"label {dot.tone}"))
    return "".join(parts) + "</g>"


def _said(dot: Dot, plot: DotPlot) -> str:
    ends = "" if dot.ends is None else f" [{', '.join(_value(end, plot) for end in dot.ends)}]"
    return f"{dot.name}: {_value(dot.value, plot)}{ends}"


def _value(value: float | int, plot: DotPlot) -> str:
    return shown(value, percent=True) if plot.percent else short(float(f"{value:.3g}"))


def _cut(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"


def _text(x: float | int, y: float | int, words: str, anchor: str, kind: str) -> str:
    return (
        f'<text class="{kind}" style="--strength:1" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(words)}</text>"
    )
