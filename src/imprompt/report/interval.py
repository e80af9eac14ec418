"""A mean with its confidence interval, as reports show it."""

from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval (`metrics.CONFIDENCE`) over the sampled units."""

    mean: float
    low: float
    high: float

    @property
    def signed(self) -> str:
        """Text of a difference: every number has its sign."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
