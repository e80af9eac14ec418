"""Numbers and settings in words: few digits, a true minus sign, percent signs, intervals in brackets."""

import math
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval (`metrics.CONFIDENCE`) over the sampled units."""

    mean: float
    low: float
    high: float

    @property
    def signed(self) -> str:
        """The text of a difference, in which every number has its sign."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def percent(self) -> str:
        """The text of a share: `87 % [83, 90]`."""
        return f"{100 * self.mean:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def sign(self) -> int:
        """The sign of a difference, 1 or -1; 0 if the interval does not exclude 0."""
        return (self.low > 0) - (self.high < 0)


def format_short(value: float | int) -> str:
    """Write a value with at most four digits: 0.05, 12, 30k, 1.5M, 2e−5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return _with_minus(f"{value:.2e}".replace("e-0", "e-").replace(".00e", "e").replace("0e", "e"))
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return _with_minus(f"{value / size:.4g}{letter}")
    return _with_minus(f"{value:.4g}")


def format_value(value: float | int, *, percent: bool = False) -> str:
    """Write a value with three digits, or a share in percent."""
    return _with_minus(f"{100 * value:.3g} %") if percent else format_short(float(f"{value:.3g}"))


def format_number(
    value: float | int, *, percent: bool = False, digits: int = 3, size: float | int | None = None
) -> str:
    """Write a number of a table, or "–" for NaN and infinity.

    Args:
        value: an integer is written as it is, with commas between thousands
        percent: multiply by 100 and round to one digit; the caller writes the percent sign
        digits: digits behind the point
        size: the largest absolute value that is written with it. If its digits would be rounded to
            nothing, the number is written with a power of ten.
    """
    if not math.isfinite(value):
        return "–"
    if isinstance(value, int) and not percent:
        return _with_minus(f"{value:,}")
    digits = 1 if percent else digits
    size = abs(value) if size is None else size
    if not percent and 0 < size < 0.5 * 10**-digits:
        return _with_minus(f"{value:.1e}".replace("e-0", "e-"))
    rounded = f"{(100 if percent else 1) * value:,.{digits}f}"
    return _with_minus(rounded.lstrip("-") if float(rounded.replace(",", "")) == 0 else rounded)


def format_mean(interval: Interval, *, percent: bool = False, digits: int = 3) -> tuple[str, str]:
    """Write an interval's mean, and its ends in brackets."""
    size = max(abs(interval.low), abs(interval.high))
    mean, low, high = (format_number(one, percent=percent, digits=digits, size=size) for one in interval)
    return mean, f"[{low}, {high}]"


def format_setting(value: Any) -> str:
    """Write the value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(f"“{item}”" if isinstance(item, str) else format_setting(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value in ("", None) else f"{value:g}" if isinstance(value, float) else str(value)


def _with_minus(text: str) -> str:
    return text.replace("-", "−")
