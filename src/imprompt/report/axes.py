"""Axes: values to places, round ends and ticks, values in few digits, labels kept off one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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


def step_axis(steps: Sequence[float | int], start: float | int, end: float | int) -> Axis:
    """From zero to the last step, so that all charts of a run lie on one another."""
    high = max(*steps, 1)
    return Axis(0, high, start, end, max(round_step(high / 5), 1))


def value_axis(
    values: Sequence[float | int],
    start: float | int,
    end: float | int,
    *,
    zero: bool = False,
    powers: bool = True,
) -> Axis:
    """Round ends around the values, and zero if that belongs to them.

    Logarithmic, if `powers` allow it, where positive values go over two powers of ten or more.
    """
    low, high = min(values), max(values)
    if powers and not zero and low > 0 and high / low >= 100:
        ends = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return Axis(10.0 ** ends[0], 10.0 ** ends[1], start, end, logarithmic=True)
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


def shown(value: float | int, *, percent: bool = False) -> str:
    """A value of three digits, or a share in percent."""
    return f"{100 * value:.3g} %".replace("-", "−") if percent else short(float(f"{value:.3g}"))


def tick(value: float | int, axis: Axis, *, percent: bool = False) -> str:
    """A value on an axis: all of one axis are written in the same way."""
    if percent or axis.high < 1e-3 or axis.logarithmic or value == 0 or abs(value) >= 1e-3:
        return shown(value, percent=percent)
    return f"{value:.6f}".rstrip("0").replace("-", "−")


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
