"""Line charts as inline SVG: axes with labels, and the name of each line at its end.

A chart is drawn in its own units, 460 × 232, and the page scales it. Strokes and words take their colors from
classes of the page's style sheet, so one drawing serves a light page and a dark one.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from imprompt.report.axes import Axis, make_step_axis, make_value_axis, move_apart
from imprompt.report.numbers import format_short, format_value

WIDTH, HEIGHT = 460, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 118, 12, 34
MOST_POINTS = 160
"""A line with more points is drawn as the means of equal stretches of steps."""

_LABEL_HEIGHT = 14.0

Tone = Literal["accent", "ink", "faint"]

Points = Sequence[tuple[float | int, float | int | None]]
"""(x, y) in the order in which they are joined; y is None where the value was not finite."""

Ends = tuple[float | int, float | int]
"""The low and the high end of an interval."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Points with intervals or with names are drawn as dots.

    Attributes:
        label: the text at the line's end, before its last value; "" for the value alone
        points: (x, y or None)
        tone: "accent" for what matters, "ink" for what it is compared with, "faint", which has no label, for
            the background
        strength: how strong the color is, 0 to 1
        filled: whether the area down to zero is tinted
        intervals: the interval of each point's y; empty where points are exact
        x_intervals: the interval of each point's x; empty where points are exact
        names: the text at each point
    """

    label: str
    points: Points
    tone: Tone = "accent"
    strength: float | int = 1.0
    filled: bool = False
    intervals: Sequence[Ends] = ()
    x_intervals: Sequence[Ends] = ()
    names: Sequence[str] = ()

    @property
    def has_dots(self) -> bool:
        """Whether each point is drawn as a dot."""
        return bool(self.intervals or self.x_intervals or self.names)


@dataclass(frozen=True)
class Chart:
    """A chart of lines.

    Attributes:
        title: what the chart shows, with its unit
        note: a sentence that says how to read it
        lines: the last one is on top
        zero: whether the y axis includes zero, with a line of its own
        percent: whether values are shares, written in percent
        x_label: the name of the x axis, which goes from zero to its last value
        y_label: the name of the y axis, where the title is not enough
        is_scatter: whether the x axis, too, lies around its values and does not begin at zero
    """

    title: str
    note: str
    lines: Sequence[Line] = field(default_factory=tuple)
    zero: bool = False
    percent: bool = False
    x_label: str = "step"
    y_label: str = ""
    is_scatter: bool = False


def draw_chart(chart: Chart) -> str:
    """Draw a chart as an SVG element; return "" if no point is finite."""
    lines = [
        replace(line, points=thin_points(line.points)) if not line.has_dots else line for line in chart.lines
    ]
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return ""
    values += [end for line in lines for ends in line.intervals for end in ends]
    x = _make_x_axis(chart, lines)
    y = make_value_axis(values, HEIGHT - BOTTOM, TOP, zero=chart.zero, powers=not chart.is_scatter)
    parts = [
        _draw_rules(x, y, chart),
        *(_draw_curve(line, x, y) for line in lines),
        _draw_labels(lines, chart, x, y),
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(chart.title)}" '
        f'data-axis="{x.low:g} {x.high:g} {x.start:g} {x.end:.1f}" '
        f'data-lines="{_write_pointer_data(lines, chart)}"{_write_x_label(chart)}>'
        f"{''.join(parts)}</svg>"
    )


def _write_x_label(chart: Chart) -> str:
    """Return the name of the x axis for the script, whose default is "step"."""
    return "" if chart.x_label == "step" else f' data-across="{html.escape(chart.x_label)}"'


def thin_points(points: Points) -> Points:
    """Return at most `MOST_POINTS` points: the means of the finite values of equal stretches."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    thin: list[tuple[float | int, float | int | None]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        values = [value for _, value in stretch if value is not None]
        thin.append((stretch[-1][0], sum(values) / len(values) if values else None))
    return thin


def smooth_points(points: Points) -> Points:
    """Return the centered running mean over about a fifteenth of the line; it is narrower at the ends."""
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


def _make_x_axis(chart: Chart, lines: Sequence[Line]) -> Axis:
    values = [x for line in lines for x, _ in line.points]
    if chart.x_label == "step":
        return make_step_axis(values, LEFT, WIDTH - RIGHT)
    values += [end for line in lines for ends in line.x_intervals for end in ends]
    return make_value_axis(values, LEFT, WIDTH - RIGHT, zero=not chart.is_scatter, powers=False)


def _draw_rules(x: Axis, y: Axis, chart: Chart) -> str:
    """Draw the axes' labels and the lines across the chart."""
    parts = []
    for value in y.ticks():
        top = y.position(value)
        kind = "zero" if chart.zero and abs(value) < 1e-12 else "rule"
        parts.append(f'<path class="{kind}" d="M{x.start:g} {top:.1f}H{x.end:.1f}"/>')
        parts.append(draw_text(x.start - 8, top + 4, y.format_tick(value, percent=chart.percent), "end"))
    for value in x.ticks():
        parts.append(draw_text(x.position(value), HEIGHT - BOTTOM + 18, format_short(value), "middle"))
    x_label = chart.x_label + (", log scale" if y.logarithmic else "")
    parts.append(draw_text(x.end, HEIGHT - 2, x_label, "end", "name"))
    if chart.y_label:
        parts.append(draw_text(x.start + 7, y.start - 7, f"↑ {chart.y_label}", "start", "name"))
    return "".join(parts)


def draw_text(x: float | int, y: float | int, words: str, anchor: str, kind: str = "tick") -> str:
    """Write words at a position of the SVG element, in the style of the class `kind`."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _draw_curve(line: Line, x: Axis, y: Axis) -> str:
    """Draw the line, broken where a value is missing, and a dot at its end or at each of its points."""
    stretches = _split_line(line.points)
    style = f'class="{line.tone}" style="--strength:{line.strength:.2f}"'
    parts = []
    for stretch in stretches:
        path = "M" + "L".join(f"{x.position(a):.1f} {y.position(b):.1f}" for a, b in stretch)
        if line.filled:
            foot = y.position(0)
            ends = f"{x.position(stretch[-1][0]):.1f} {foot:.1f}L{x.position(stretch[0][0]):.1f} {foot:.1f}"
            parts.append(f'<path class="area" d="{path}L{ends}Z"/>')
        parts.append(f'<path {style} d="{path}"/>')
    if line.has_dots:
        parts += [_draw_dot(line, index, style, x, y) for index in range(len(line.points))]
        parts += _draw_names(line, x, y)
    elif stretches and line.tone != "faint":
        step, value = stretches[-1][-1]
        parts.append(f'<circle {style} cx="{x.position(step):.1f}" cy="{y.position(value):.1f}" r="2.6"/>')
    return "".join(parts)


def _draw_dot(line: Line, index: int, style: str, x: Axis, y: Axis) -> str:
    """Draw one point as a dot with its intervals."""
    step, value = line.points[index]
    if value is None:
        return ""
    left, top, parts = x.position(step), y.position(value), []
    if line.intervals:
        low, high = (y.position(end) for end in line.intervals[index])
        parts.append(f'<path {style} d="M{left:.1f} {low:.1f}V{high:.1f}"/>')
    if line.x_intervals:
        low, high = (x.position(end) for end in line.x_intervals[index])
        parts.append(f'<path {style} d="M{low:.1f} {top:.1f}H{high:.1f}"/>')
    parts.append(f'<circle {style} cx="{left:.1f}" cy="{top:.1f}" r="3.4"/>')
    return "".join(parts)


def _draw_names(line: Line, x: Axis, y: Axis) -> list[str]:
    """Write the points' names next to them, each where it does not overlap an earlier one."""
    occupied: list[tuple[float | int, float | int]] = []
    parts = []
    for name, (step, value) in zip(line.names, line.points, strict=False):
        if value is None:
            continue
        width = 7.0 * len(name)
        corners = [(x.position(step) + 7, y.position(value) + off) for off in (-7, 16, -20, 29, -33)]
        free = [at for at in corners if not any(_overlap(at, other, width) for other in occupied)]
        occupied.append((free or corners)[0])
        parts.append(draw_text(*occupied[-1], name, "start", "name"))
    return parts


def _overlap(
    at: tuple[float | int, float | int], other: tuple[float | int, float | int], width: float
) -> bool:
    return abs(at[0] - other[0]) < width and abs(at[1] - other[1]) < _LABEL_HEIGHT - 2


def _split_line(points: Points) -> list[list[tuple[float | int, float | int]]]:
    stretches: list[list[tuple[float | int, float | int]]] = [[]]
    for step, value in points:
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append((step, value))
    return [stretch for stretch in stretches if stretch]


def _draw_labels(lines: Sequence[Line], chart: Chart, x: Axis, y: Axis) -> str:
    """Write each line's name and last value at its end, moved apart where they would overlap."""
    lasts = ((next((v for _, v in reversed(line.points) if v is not None), None), line) for line in lines)
    ends = [
        (y.position(last), last, line) for last, line in lasts if last is not None and line.tone != "faint"
    ]
    ends.sort(key=lambda end: end[0])
    tops = move_apart([top for top, _, _ in ends], _LABEL_HEIGHT, TOP, HEIGHT - BOTTOM)
    return "".join(
        f'<text class="label {line.tone}" style="--strength:{line.strength:.2f}" '
        f'x="{x.end + 9:.1f}" y="{top + 4:.1f}">'
        f"{html.escape(line.label)}{_write_last_value(last, line, chart)}</text>"
        for top, (_, last, line) in zip(tops, ends, strict=True)
    )


def _write_last_value(value: float | int, line: Line, chart: Chart) -> str:
    """Write a line's last value; return "" in a scatter plot, which has no last one."""
    if chart.is_scatter:
        return ""
    return f'<tspan dx="{5 if line.label else 0}">{format_value(value, percent=chart.percent)}</tspan>'


def _write_pointer_data(lines: Sequence[Line], chart: Chart) -> str:
    """Return the values under the pointer as JSON for the script; a scatter plot has none."""
    values = [
        [
            line.label,
            [
                [step, format_value(value, percent=chart.percent)]
                for step, value in line.points
                if value is not None
            ],
        ]
        for line in lines
        if line.tone != "faint" and not chart.is_scatter
    ]
    return html.escape(json.dumps(values, ensure_ascii=False, separators=(",", ":")), quote=True)
