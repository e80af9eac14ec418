"""What a page is made of: sections of tables, charts, grids of pictures, and lists of facts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imprompt.report.charts import Chart
from imprompt.report.numbers import Interval
from imprompt.report.pictures import PictureRow

Cell = str | float | int | Interval | None
"""Words, a number, a number with its interval, or nothing."""


@dataclass(frozen=True)
class Column:
    """The heading of a table's column, and how its numbers are written.

    Attributes:
        name: the heading
        percent: whether numbers are shares, written in percent
        digits: digits behind the point
    """

    name: str
    percent: bool = False
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its name.

    Attributes:
        columns: the headings; a plain name is a column of numbers with three digits behind the point
        rows: each has as many cells as there are columns
        note: a sentence that says how to read it
        title: the heading above it
        strong: the places of the rows that matter, which are bold
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
        """The columns, with a `Column` in place of each plain name."""
        return [Column(one) if isinstance(one, str) else one for one in self.columns]


@dataclass(frozen=True)
class Grid:
    """Rows of pictures under column titles, each with a label.

    Attributes:
        titles: of the columns; as many as there are pictures in a row
        rows: pictures and label
        note: a sentence that says what to look for
        title: the heading above it
    """

    titles: Sequence[str]
    rows: Sequence[PictureRow]
    note: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a row of another length."""
        for row in self.rows:
            if len(row.pictures) != len(self.titles):
                raise ValueError(f"{len(row.pictures)} pictures under {len(self.titles)} titles")


@dataclass(frozen=True)
class Facts:
    """Groups of names and values, in columns.

    Attributes:
        groups: title of a group → its facts; a title may be empty
        summary: if it is given, the groups are folded away under this line
    """

    groups: Mapping[str, Mapping[str, Any]]
    summary: str = ""


@dataclass(frozen=True)
class Code:
    """A command or another text that readers copy, with a note above it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Markup:
    """HTML that is put into the page as it is; its author must escape every text in it."""

    html: str


Block = Table | Chart | Grid | Facts | Code | Markup


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, with a sentence or two before them."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class KeyFigure:
    """A number in the page's head.

    Attributes:
        value: the number, or its text
        name: what the number is
        comparison: what to compare it with
        percent: whether it is a share, written in percent
        digits: digits behind the point
        unit: written behind the number, smaller
    """

    value: float | int | Interval | str
    name: str
    comparison: str = ""
    percent: bool = False
    digits: int = 3
    unit: str = ""


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        title: what was measured
        lead: the result in one plain sentence
        sections: in their order
        facts: how it was made, by name
        overline: the line above the title
        key_figures: the first one is the most important
        progress: the share of a run that is done, 0 to 1, for a bar; None for no bar
        state: the line under the lead, or under the bar
        author: the command that wrote the page
        source: the file with the page's numbers, in the page's folder
    """

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Mapping[str, Any] = field(default_factory=dict)
    overline: str = ""
    key_figures: Sequence[KeyFigure] = ()
    progress: float | None = None
    state: str = ""
    author: str = "imprompt evaluate"
    source: str = "summary.json"


def pick_best_median_worst(scores: Sequence[float | int], count: int = 1) -> list[int]:
    """Return the places of the `count` best, the `count` middle and the `count` worst scores, best first.

    No place is returned twice: of fewer than 3 × `count` scores all places are returned. Of equal scores the
    first one counts as the better one.

    Raises:
        ValueError: a score is NaN
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("scores that are not numbers have no order")
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if len(order) <= 3 * count:
        return order
    middle = (len(order) - count) // 2
    start = min(max(middle, count), len(order) - 2 * count)
    return order[:count] + order[start : start + count] + order[-count:]
