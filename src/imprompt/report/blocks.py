"""What a report is made of: sections of tables, charts and grids of pictures."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imprompt.report.charts import Chart
from imprompt.report.dots import DotPlot
from imprompt.report.interval import Interval
from imprompt.report.sheets import Row

Cell = str | float | int | Interval | None
"""Words, a number, a number with its interval, or nothing."""


@dataclass(frozen=True)
class Column:
    """A column's heading, and how its numbers are written.

    Attributes:
        name: the heading
        percent: whether numbers are shares, shown in percent
        digits: behind the point
    """

    name: str
    percent: bool = False
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its name.

    Attributes:
        columns: headings; a plain name is a column of numbers with three digits behind the point
        rows: as many cells each as there are columns
        note: how to read it; a sentence
        title: what stands above it
        strong: the rows that matter, by their places
    """

    columns: Sequence[str | Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    title: str = ""
    strong: Collection[int] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a row of another length."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} headings: {row!r}")

    @property
    def headings(self) -> list[Column]:
        """The columns, plain names made whole."""
        return [Column(one) if isinstance(one, str) else one for one in self.columns]


@dataclass(frozen=True)
class Grid:
    """Rows of pictures under titles, each with what it shows.

    Attributes:
        titles: of the columns; as many as there are pictures in a row
        rows: pictures and label
        note: what is to be seen; a sentence
        title: what stands above it
    """

    titles: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a row of another length."""
        for row in self.rows:
            if len(row.pictures) != len(self.titles):
                raise ValueError(f"{len(row.pictures)} pictures under {len(self.titles)} titles")


Block = Table | Chart | DotPlot | Grid


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, with a sentence or two before them."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Tile:
    """A key figure: its number, its name, and what to compare it with."""

    value: float | int | Interval
    name: str
    beside: str = ""
    percent: bool = False
    digits: int = 3


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        title: what was measured
        lead: what came of it, in one plain sentence
        sections: in their order
        facts: how it was made, by name, for people
        over: what stands above the title
        tiles: key figures, the first one the most important
    """

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Mapping[str, Any] = field(default_factory=dict)
    over: str = ""
    tiles: Sequence[Tile] = ()


def best_median_worst(scores: Sequence[float | int], count: int = 1) -> list[int]:
    """Places of the `count` best scores, of `count` around the median, and of the `count` worst, best first.

    None comes twice: of fewer than 3 × `count` scores all are given. Of equal scores the first is the better
    one.

    Raises:
        ValueError: a score is not a number
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("scores that are not numbers have no order")
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if len(order) <= 3 * count:
        return order
    middle = (len(order) - count) // 2
    start = min(max(middle, count), len(order) - 2 * count)
    return order[:count] + order[start : start + count] + order[-count:]
