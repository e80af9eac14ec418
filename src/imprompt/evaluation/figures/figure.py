"""A figure: rows of pictures, what they should show, what was measured of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from imprompt.evaluation.metrics import Interval
from imprompt.evaluation.sheets import Row, titled_sheet

CELL = 112
"""Side of a shown picture, px."""


@dataclass(frozen=True)
class Figure:
    """One figure of the page.

    Args:
        name: of its file
        title: its heading
        promise: what it should show, in one line
        settings: what is particular to how it was made
        columns: title → a picture for each row
        measured: what was measured → which pictures → the number
    """

    name: str
    title: str
    promise: str
    settings: str
    columns: Mapping[str, Sequence[Image.Image]]
    measured: Mapping[str, Mapping[str, Interval | str | None]]

    def sheet(self, shown: int) -> Image.Image:
        """The first `shown` rows under their titles."""
        rows = [Row(row) for row in list(zip(*self.columns.values(), strict=True))[:shown]]
        return titled_sheet(list(self.columns), rows, cell=CELL)

    @property
    def lines(self) -> list[str]:
        """What was measured, a line for each kind of number."""
        return [
            f"{what}: " + "; ".join(f"{which} {said(number)}".strip() for which, number in numbers.items())
            for what, numbers in self.measured.items()
        ]


def said(number: Interval | str | None) -> str:
    """A number as a reader wants it."""
    if isinstance(number, Interval):
        return f"{number.mean:.2f} [{number.low:.2f}, {number.high:.2f}]"
    return number or "–"
