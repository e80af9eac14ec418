"""A figure: rows of images, what they should show, and the verdict that follows from its numbers.

    yes      every number reaches its threshold, and is significantly above its floor
    partly   every number is significantly above its floor
    no       some number is not significantly above its floor

figures.toml has titles, promises and thresholds.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

from imprompt.evaluation.metrics import bootstrap_difference, bootstrap_interval
from imprompt.report import Interval, PictureRow, draw_sheet

Verdict = Literal["no", "partly", "yes"]
WORST_FIRST: tuple[Verdict, ...] = ("no", "partly", "yes")

Values = Float[np.ndarray, " subjects"]
"""One number for each subject; NaN where there is nothing to measure."""

Columns = Mapping[str, Sequence[Image.Image]]
"""Title → an image for each row."""


@cache
def load_texts() -> dict[str, Any]:
    """Read figures.toml."""
    return tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, eq=False)
class Criterion:
    """A number that decides the verdict of a figure, and its floor.

    Attributes:
        least: the threshold of the mean, from 0 to 1
        what: what was measured
        floor_name: which images the floor is of
        is_share: whether it is written in percent
        values, floors: of the same subjects
    """

    least: float
    what: str
    floor_name: str
    is_share: bool
    values: Values
    floors: Values

    @property
    def value(self) -> Interval | None:
        """The mean over the subjects that can be measured; None if there is no such subject."""
        return bootstrap_interval(self.values) if len(self.values) else None

    @property
    def floor(self) -> Interval | None:
        """The floor's mean over the same subjects."""
        return bootstrap_interval(self.floors) if len(self.floors) else None

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict by the rule above; "partly" for what cannot be measured."""
        if self.value is None:
            return "partly"
        if bootstrap_difference(self.values, self.floors).low <= 0:
            return "no"
        return "yes" if self.value.mean >= self.least else "partly"

    @property
    def fault(self) -> str:
        """Why the verdict is not yes; empty if it is."""
        if self.value is None:
            return "not measured, for no character has it"
        return {"no": "not told from the floor", "partly": "below the threshold", "yes": ""}[self.verdict]

    def show(self, number: Interval | float | None) -> str:
        """Write a number for a reader."""
        if number is None:
            return "–"
        if not isinstance(number, Interval):
            return f"{100 * number:.0f} %" if self.is_share else f"{number:.2f}"
        if self.is_share:
            return number.percent
        return f"{number.mean:.2f} [{number.low:.2f}, {number.high:.2f}]"


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure of the page: its columns of images, and by name the numbers that decide."""

    name: str
    columns: Columns
    criteria: Mapping[str, Criterion]

    @property
    def texts(self) -> dict[str, Any]:
        """Its title, promise and settings."""
        return load_texts()[self.name]

    @property
    def verdict(self) -> Verdict:
        """The verdict of its worst number."""
        return WORST_FIRST[min(WORST_FIRST.index(one.verdict) for one in self.criteria.values())]

    def draw_sheet(self, shown: int) -> Image.Image:
        """Draw the first `shown` rows under their titles."""
        rows = [
            PictureRow(row) for row in zip(*(column[:shown] for column in self.columns.values()), strict=True)
        ]
        return draw_sheet(list(self.columns), rows)


def build_figure(name: str, columns: Columns, numbers: Mapping[str, tuple[Values, Values]]) -> Figure:
    """Build a figure from values and floors under the names that figures.toml has for them."""
    return Figure(name, columns, {key: build_criterion(name, key, *pair) for key, pair in numbers.items()})


def build_criterion(figure: str, name: str, values: Values, floors: Values) -> Criterion:
    """Build a number with its threshold; subjects that cannot be measured are left out."""
    text = load_texts()[figure][name]
    rows = np.isfinite(values) & np.isfinite(floors)
    is_share = text.get("share", True)
    return Criterion(text["least"], text["what"], text["floor"], is_share, values[rows], floors[rows])
