"""Axes of charts: values to positions, round ends and ticks, labels that do not overlap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imprompt.report.numbers import format_value


@dataclass(frozen=True)
class Axis:
    """A map from values to positions: `low` is at `start`, `high` at `end`, and every `step` has a label."""

    low: float | int
    high: float | int
    start: float | int
    end: float | int
    step: float | int = 1.0
    logarithmic: bool = False

    def position(self, value: float | int) -> float | int:
        """Return the position of a value."""
        transform = math.log10 if self.logarithmic else float
        low, high = transform(self.low), transform(self.high)
        return self.start + (transform(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float | int]:
        """Return the values that have a label: multiples of the step, or powers of ten."""
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]

    def format_tick(self, value: float | int, *, percent: bool = False) -> str:
        """Write a value on this axis; all values of an axis are written in the same way."""
        if percent or self.high < 1e-3 or self.logarithmic or value == 0 or abs(value) >= 1e-3:
            return format_value(value, percent=percent)
        return f"{value:.6f}".rstrip("0").replace("-", "−")


def make_step_axis(steps: Sequence[float | int], start: float | int, end: float | int) -> Axis:
    """Make an axis from zero to the last step, so that all charts of a run have the same one."""
    high = max(*steps, 1)
    return Axis(0, high, start, end, max(round_step(high / 5), 1))


def make_value_axis(
    values: Sequence[float | int],
    start: float | int,
    end: float | int,
    *,
    zero: bool = False,
    powers: bool = True,
) -> Axis:
    """Make an axis with round ends around the values, and around zero if `zero` is set.

    It is logarithmic if `powers` allow it and positive values span two powers of ten or more.
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
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def move_apart(
    positions: Sequence[float | int], distance: float | int, low: float | int, high: float | int
) -> list[float | int]:
    """Move ascending positions in [low, high] apart, as little as possible, to at least `distance`."""
    moved: list[float | int] = []
    for position in positions:
        moved.append(max(position, moved[-1] + distance) if moved else max(position, low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - distance
    return moved
