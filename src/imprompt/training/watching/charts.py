"""Curves as inline SVG: axes with labels, each line named at its end, colours from the page's style sheet.

A chart is drawn in its own units, 460 × 232, and scaled by the page; strokes and words take their colours
from classes, so that one drawing serves a light page and a dark one.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from imprompt.training.watching.history import Points

WIDTH, HEIGHT = 460, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 118, 12, 34
MOST_POINTS = 160
"""A longer line is drawn as means of equal stretches of steps: a curve is not wider than its pixels."""

_LABEL_HEIGHT = 14.0

Tone = Literal["accent", "ink", "faint"]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: what stands at its end, before its last value; empty for the value alone
        points: (step, value or None)
        tone: accent for what matters, ink for what it is compared with, faint, without a label, for what
            lies behind
        strength: of the colour, 0–1
        filled: whether the area down to zero is tinted
    """

    label: str
    points: Points
    tone: Tone = "accent"
    strength: float | int = 1.0
    filled: bool = False


@dataclass(frozen=True)
class Chart:
    """Some curves over the steps.

    Attributes:
        title: what is drawn, with its unit
        note: how to read it; a sentence
        lines: the curves, the last one on top
        zero: whether zero belongs to the axis, with a line of its own
        percent: whether values are shares, shown in percent
    """

    title: str
    note: str
    lines: Sequence[Line] = field(default_factory=tuple)
    zero: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Axis:
    """Values to places: `low` lies at `start`, `high` at `end`; every `step` is labelled."""

    low: float | int
    high: float | int
    start: float | int
    end: float | int
    step: float | int = 1.0
    logarithmic: bool = False

    def place(self, value: float | int) -> float | int:
        """Where a value lies."""
        turn = math.log10 if self.logarithmic else float
        low, high = turn(self.low), turn(self.high)
        return self.start + (turn(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float | int]:
        """The values that are labelled: multiples of the step, or powers of ten."""
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]


def draw(chart: Chart) -> str:
    """A chart as an SVG element; without any finite point an empty string."""
    lines = [Line(x.label, thinned(x.points), x.tone, x.strength, x.filled) for x in chart.lines]
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return ""
    x = step_axis([step for line in lines for step, _ in line.points], LEFT, WIDTH - RIGHT)
    y = value_axis(values, zero=chart.zero)
    parts = [_grid(x, y, chart), *(_curve(line, x, y) for line in lines), _labels(lines, chart, x, y)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(chart.title)}" '
        f'data-axis="{x.low:g} {x.high:g} {x.start:g} {x.end:.1f}" data-lines="{_data(lines, chart)}">'
        f"{''.join(parts)}</svg>"
    )


def thinned(points: Points) -> Points:
    """At most MOST_POINTS points: means of equal stretches; where a value is missing in one, the others'."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    thin: list[tuple[int, float | None]] = []
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
    smooth: list[tuple[int, float | None]] = []
    for index, (step, _) in enumerate(known):
        reach = min(half, index, len(known) - 1 - index)
        stretch = known[index - reach : index + reach + 1]
        smooth.append((step, sum(value for _, value in stretch) / len(stretch)))
    return smooth


def step_axis(steps: Sequence[int], start: float | int, end: float | int) -> Axis:
    """From zero to the last step, so that all charts of a run lie on one another."""
    high = max(*steps, 1)
    return Axis(0, high, start, end, max(round_step(high / 5), 1))


def value_axis(values: Sequence[float | int], *, zero: bool) -> Axis:
    """Round ends around the values; logarithmic where positive values go over two powers of ten or more."""
    low, high = min(values), max(values)
    start, end = HEIGHT - BOTTOM, TOP
    if not zero and low > 0 and high / low >= 100:
        powers = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return Axis(10.0 ** powers[0], 10.0 ** powers[1], start, end, logarithmic=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = round_step((high - low) / 4)
    return Axis(math.floor(low / step) * step, math.ceil(high / step) * step, start, end, step)


def round_step(rough: float | int) -> float | int:
    """The next of 1, 2, 5 times a power of ten, from `rough` up."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def short(value: float | int) -> str:
    """A value for people, of four digits at most: 0.05, 12, 30k, 1.5M, 2e−5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-").replace(".00e", "e").replace("0e", "e").replace("-", "−")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _shown(value: float | int, chart: Chart) -> str:
    """A value in the words of its chart, of three digits."""
    return f"{100 * value:.3g} %" if chart.percent else short(float(f"{value:.3g}"))


def _tick(value: float | int, axis: Axis, chart: Chart) -> str:
    """A value on an axis: all of one axis are written in the same way."""
    if chart.percent or axis.high < 1e-3 or axis.logarithmic or value == 0 or abs(value) >= 1e-3:
        return _shown(value, chart)
    return f"{value:.6f}".rstrip("0").replace("-", "−")


def _grid(x: Axis, y: Axis, chart: Chart) -> str:
    parts = []
    for value in y.ticks():
        place = y.place(value)
        kind = "zero" if chart.zero and abs(value) < 1e-12 else "rule"
        parts.append(f'<path class="{kind}" d="M{x.start:g} {place:.1f}H{x.end:.1f}"/>')
        parts.append(_text(x.start - 8, place + 4, _tick(value, y, chart), "end"))
    for value in x.ticks():
        parts.append(_text(x.place(value), HEIGHT - BOTTOM + 18, short(value), "middle"))
    parts.append(_text(x.end, HEIGHT - 2, "step" + (", log scale" if y.logarithmic else ""), "end", "name"))
    return "".join(parts)


def _text(x: float | int, y: float | int, words: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _curve(line: Line, x: Axis, y: Axis) -> str:
    """The line, broken where a value is missing; and a dot at its end."""
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
    if stretches and line.tone != "faint":
        step, value = stretches[-1][-1]
        parts.append(f'<circle {style} cx="{x.place(step):.1f}" cy="{y.place(value):.1f}" r="2.6"/>')
    return "".join(parts)


def _stretches(points: Points) -> list[list[tuple[int, float]]]:
    stretches: list[list[tuple[int, float]]] = [[]]
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
        f'x="{x.end + 9:.1f}" y="{place + 4:.1f}">{html.escape(line.label)}'
        f'<tspan dx="{5 if line.label else 0}">{_shown(last, chart)}</tspan></text>'
        for place, (_, last, line) in zip(places, ends, strict=True)
    )


def spread(
    places: Sequence[float | int], distance: float | int, low: float | int, high: float | int
) -> list[float | int]:
    """Ascending places moved apart to at least `distance`, as little as that takes, inside [low, high]."""
    moved: list[float | int] = []
    for place in places:
        moved.append(max(place, moved[-1] + distance) if moved else max(place, low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - distance
    return moved


def _data(lines: Sequence[Line], chart: Chart) -> str:
    """What is shown under the pointer, as JSON in an attribute."""
    named = [
        [line.label, [[step, _shown(value, chart)] for step, value in line.points if value is not None]]
        for line in lines
        if line.tone != "faint"
    ]
    return html.escape(json.dumps(named, ensure_ascii=False, separators=(",", ":")), quote=True)
