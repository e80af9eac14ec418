"""Charts as inline SVG: axes with labels, each line named at its end, colours from the page's style sheet.

A chart is drawn in its own units, 460 × 232, and scaled by the page; strokes and words take their colours
from classes, so that one drawing serves a light page and a dark one.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from imprompt.report.axes import Axis, short, shown, spread, step_axis, tick, value_axis

WIDTH, HEIGHT = 460, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 118, 12, 34
MOST_POINTS = 160
"""A longer line is drawn as means of equal stretches of steps: a curve is not wider than its pixels."""

_LABEL_HEIGHT = 14.0

Tone = Literal["accent", "ink", "faint"]

Points = Sequence[tuple[float | int, float | int | None]]
"""(x, y), in the order in which they are joined; None where the value was not finite."""

Ends = tuple[float | int, float | int]
"""Low and high end of an interval."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: what stands at its end, before its last value; empty for the value alone
        points: (x, y or None)
        tone: accent for what matters, ink for what it is compared with, faint, without a label, for what
            lies behind
        strength: of the colour, 0–1
        filled: whether the area down to zero is tinted
        intervals: of each point's y, in their order; none: the points are exact. Points with intervals, or
            with names, are drawn as dots
        sideways: of each point's x
        names: what stands beside each point
    """

    label: str
    points: Points
    tone: Tone = "accent"
    strength: float | int = 1.0
    filled: bool = False
    intervals: Sequence[Ends] = ()
    sideways: Sequence[Ends] = ()
    names: Sequence[str] = ()

    @property
    def dotted(self) -> bool:
        """Whether each point stands for itself."""
        return bool(self.intervals or self.sideways or self.names)


@dataclass(frozen=True)
class Chart:
    """Some curves.

    Attributes:
        title: what is drawn, with its unit
        note: how to read it; a sentence
        lines: the curves, the last one on top
        zero: whether zero belongs to the upright axis, with a line of its own
        percent: whether values are shares, shown in percent
        across: name of the level axis, which goes from zero to its last value
        up: name of the upright axis, where the title is not enough
        free: whether the level axis, too, lies around its values and not from zero
    """

    title: str
    note: str
    lines: Sequence[Line] = field(default_factory=tuple)
    zero: bool = False
    percent: bool = False
    across: str = "step"
    up: str = ""
    free: bool = False


def draw(chart: Chart) -> str:
    """A chart as an SVG element; without any finite point an empty string."""
    lines = [replace(line, points=thinned(line.points)) if not line.dotted else line for line in chart.lines]
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return ""
    values += [end for line in lines for ends in line.intervals for end in ends]
    x = _level_axis(chart, lines)
    y = value_axis(values, HEIGHT - BOTTOM, TOP, zero=chart.zero, powers=not chart.free)
    parts = [_grid(x, y, chart), *(_curve(line, x, y) for line in lines), _labels(lines, chart, x, y)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(chart.title)}" '
        f'data-axis="{x.low:g} {x.high:g} {x.start:g} {x.end:.1f}" data-lines="{_data(lines, chart)}"'
        f"{_across(chart)}>{''.join(parts)}</svg>"
    )


def _across(chart: Chart) -> str:
    """The name of the level axis for the script, which knows steps."""
    return "" if chart.across == "step" else f' data-across="{html.escape(chart.across)}"'


def thinned(points: Points) -> Points:
    """At most MOST_POINTS points: means of equal stretches; where a value is missing in one, the others'."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    thin: list[tuple[float | int, float | int | None]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        values = [value for _, value in stretch if value is not None]
        thin.append((stretch[-1][0], sum(values) / len(values) if values else None))
    return thin


def smoothed(points: Points) -> Points:
    """A running mean over about a fifteenth of the curve, centred; narrower at the ends, so none is lost."""
    known = [(step, value) for step, value in points if value is not None]
    half = len(known) // 30
    if not half:
        return list(known)
    smooth: list[tuple[float | int, float | int | None]] = []
    for index, (step, _) in enumerate(known):
        reach = min(half, index, len(known) - 1 - index)
        stretch = known[index - reach : index + reach + 1]
        smooth.append((step, sum(value for _, value in stretch) / len(stretch)))
    return smooth


def _level_axis(chart: Chart, lines: Sequence[Line]) -> Axis:
    places = [step for line in lines for step, _ in line.points]
    if chart.across == "step":
        return step_axis(places, LEFT, WIDTH - RIGHT)
    places += [end for line in lines for ends in line.sideways for end in ends]
    return value_axis(places, LEFT, WIDTH - RIGHT, zero=not chart.free, powers=False)


def _grid(x: Axis, y: Axis, chart: Chart) -> str:
    parts = []
    for value in y.ticks():
        place = y.place(value)
        kind = "zero" if chart.zero and abs(value) < 1e-12 else "rule"
        parts.append(f'<path class="{kind}" d="M{x.start:g} {place:.1f}H{x.end:.1f}"/>')
        parts.append(_text(x.start - 8, place + 4, tick(value, y, percent=chart.percent), "end"))
    for value in x.ticks():
        parts.append(_text(x.place(value), HEIGHT - BOTTOM + 18, short(value), "middle"))
    across = chart.across + (", log scale" if y.logarithmic else "")
    parts.append(_text(x.end, HEIGHT - 2, across, "end", "name"))
    if chart.up:
        parts.append(_text(x.start + 7, y.start - 7, f"↑ {chart.up}", "start", "name"))
    return "".join(parts)


def _text(x: float | int, y: float | int, words: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _curve(line: Line, x: Axis, y: Axis) -> str:
    """The line, broken where a value is missing; and a dot at its end, or at each of its points."""
    stretches = _stretches(line.points)
    style = f'class="{line.tone}" style="--strength:{line.strength:.2f}"'
    parts = []
    for stretch in stretches:
        places = [f"{x.place(step):.1f} {y.place(value):.1f}" for step, value in stretch]
        path = "M" + "L".join(places)
        if line.filled:
            foot = y.place(0)
            ends = f"{x.place(stretch[-1][0]):.1f} {foot:.1f}L{x.place(stretch[0][0]):.1f} {foot:.1f}"
            parts.append(f'<path class="area" d="{path}L{ends}Z"/>')
        parts.append(f'<path {style} d="{path}"/>')
    if line.dotted:
        parts += [_dot(line, index, style, x, y) for index in range(len(line.points))]
        parts += _names(line, x, y)
    elif stretches and line.tone != "faint":
        step, value = stretches[-1][-1]
        parts.append(f'<circle {style} cx="{x.place(step):.1f}" cy="{y.place(value):.1f}" r="2.6"/>')
    return "".join(parts)


def _dot(line: Line, index: int, style: str, x: Axis, y: Axis) -> str:
    """One point that stands for itself: its intervals, a dot, its name."""
    step, value = line.points[index]
    if value is None:
        return ""
    across, up, parts = x.place(step), y.place(value), []
    if line.intervals:
        low, high = (y.place(end) for end in line.intervals[index])
        parts.append(f'<path {style} d="M{across:.1f} {low:.1f}V{high:.1f}"/>')
    if line.sideways:
        low, high = (x.place(end) for end in line.sideways[index])
        parts.append(f'<path {style} d="M{low:.1f} {up:.1f}H{high:.1f}"/>')
    parts.append(f'<circle {style} cx="{across:.1f}" cy="{up:.1f}" r="3.4"/>')
    return "".join(parts)


def _names(line: Line, x: Axis, y: Axis) -> list[str]:
    """The points' names beside them, each where no earlier one stands."""
    taken: list[tuple[float | int, float | int]] = []
    parts = []
    for name, (step, value) in zip(line.names, line.points, strict=False):
        if value is None:
            continue
        room = 7.0 * len(name)
        places = [(x.place(step) + 7, y.place(value) + off) for off in (-7, 16, -20, 29, -33)]
        free = [at for at in places if not any(_near(at, other, room) for other in taken)]
        taken.append((free or places)[0])
        parts.append(_text(*taken[-1], name, "start", "name"))
    return parts


def _near(at: tuple[float | int, float | int], other: tuple[float | int, float | int], room: float) -> bool:
    return abs(at[0] - other[0]) < room and abs(at[1] - other[1]) < _LABEL_HEIGHT - 2


def _stretches(points: Points) -> list[list[tuple[float | int, float | int]]]:
    stretches: list[list[tuple[float | int, float | int]]] = [[]]
    for step, value in points:
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append((step, value))
    return [stretch for stretch in stretches if stretch]


def _labels(lines: Sequence[Line], chart: Chart, x: Axis, y: Axis) -> str:
    """Each line's name and last value at its end, moved apart where they would lie on one another."""
    lasts = ((next((v for _, v in reversed(line.points) if v is not None), None), line) for line in lines)
    ends = [(y.place(last), last, line) for last, line in lasts if last is not None and line.tone != "faint"]
    ends.sort(key=lambda end: end[0])
    places = spread([place for place, _, _ in ends], _LABEL_HEIGHT, TOP, HEIGHT - BOTTOM)
    return "".join(
        f'<text class="label {line.tone}" style="--strength:{line.strength:.2f}" '
        f'x="{x.end + 9:.1f}" y="{place + 4:.1f}">{html.escape(line.label)}{_last(last, line, chart)}</text>'
        for place, (_, last, line) in zip(places, ends, strict=True)
    )


def _last(value: float | int, line: Line, chart: Chart) -> str:
    """A line's last value, where the line goes somewhere."""
    if chart.free:
        return ""
    return f'<tspan dx="{5 if line.label else 0}">{shown(value, percent=chart.percent)}</tspan>'


def _data(lines: Sequence[Line], chart: Chart) -> str:
    """What is shown under the pointer, as JSON in an attribute; nothing where x is no time."""
    named = [
        [
            line.label,
            [[step, shown(value, percent=chart.percent)] for step, value in line.points if value is not None],
        ]
        for line in lines
        if line.tone != "faint" and not chart.free
    ]
    return html.escape(json.dumps(named, ensure_ascii=False, separators=(",", ":")), quote=True)
