"""Tables of captions and file names: a JSON list, as the official script wants it, read whole."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.errors import DataError
from imprompt.training.config import DataSettings
from imprompt.training.samples.files import fingerprint
from imprompt.training.samples.rows import Row, RowReader, find_columns
from imprompt.training.samples.sample import Sample, Unreadable


@dataclass(frozen=True)
class ListPart:
    """Some consecutive rows, held in memory."""

    table: str
    first: int
    rows: tuple[Row, ...]
    reader: RowReader

    @property
    def identity(self) -> str:
        """Of the rows and of the files that they name."""
        return fingerprint(state for row in self.rows for state in self.reader.states(row))

    def __len__(self) -> int:
        return len(self.rows)

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read them, in the table's order."""
        for number, row in enumerate(self.rows, start=self.first + 1):
            yield self.reader.sample(row, f"{self.table} row {number}")


def json_parts(path: Path, data: DataSettings, part_size: int) -> Sequence[ListPart]:
    """A JSON list of objects.

    Raises:
        DataError: no JSON, no list of objects, or a column that is not there
    """
    rows = _json_list(path)
    reader = RowReader(
        find_columns(data.columns, {column for row in rows for column in row}, str(path)), root_of(path, data)
    )
    return [
        ListPart(path.name, start, tuple(rows[start : start + part_size]), reader)
        for start in range(0, len(rows), part_size)
    ]


def root_of(table: Path, data: DataSettings) -> Path:
    """Where the relative file names in a table begin."""
    return Path(data.root) if data.root else table.parent


def _json_list(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path} must be a list of objects like {{"image": "cat.png", "text": "a cat"}}')
    return rows
