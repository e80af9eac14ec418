"""Tables of captions and file names: one part for all kinds; JSON of the official script or of kohya."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from imprompt.errors import DataError
from imprompt.training.config import DataSettings
from imprompt.training.samples.files import hash_words, is_not_fetched
from imprompt.training.samples.kohya import read_metadata
from imprompt.training.samples.rows import RowReader, TableRow, find_columns
from imprompt.training.samples.sample import Sample, Unreadable, Unusable


@runtime_checkable
class TableRows(Protocol):
    """Consecutive rows of a table, read on demand; small and picklable."""

    @property
    def state(self) -> tuple[object, ...]:
        """What changes with the rows if their cells do not."""
        ...

    def read(self) -> Iterator[TableRow | Unusable]:
        """Yield rows from the first one, perhaps more than belong to the part."""
        ...

    def read_names(self) -> Iterator[TableRow | Unusable]:
        """Yield the same rows, but only cells that may be file names."""
        ...


@dataclass(frozen=True)
class TablePart:
    """Some consecutive rows of a table.

    Args:
        table: name of the table, for messages
        first: number of rows before them
        count: number of rows
        rows: source of the rows
        reader: converts them to samples
    """

    table: str
    first: int
    count: int
    rows: TableRows
    reader: RowReader

    @property
    def identity(self) -> str:
        """Fingerprint of the rows and of the files that they name."""
        named = itertools.islice(self.rows.read_names(), self.count)
        return hash_words(itertools.chain([self.rows.state, self.count], map(self.reader.states, named)))

    def __len__(self) -> int:
        return self.count

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read the samples in the order of the table."""
        for number, row in enumerate(itertools.islice(self.rows.read(), self.count), start=self.first + 1):
            yield self.reader.sample(row, f"{self.table} row {number}")


@dataclass(frozen=True)
class ListRows:
    """Rows in memory."""

    held: tuple[TableRow, ...]

    @property
    def state(self) -> tuple[object, ...]:
        """Nothing, as the cells cover everything."""
        return ()

    def read(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`."""
        return iter(self.held)

    def read_names(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`."""
        return iter(self.held)


def open_json(path: Path, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    """Open a JSON list of objects, or kohya's metadata; the file is read whole.

    Raises:
        DataError: no JSON, neither of the two, or a column that is not there
    """
    rows = _json_rows(path, find_root(path, data))
    there = {column for row in rows for column in row}
    rows = [row for row in rows if not is_not_fetched(row)]
    reader = RowReader(find_columns(data.columns, there, str(path)), find_root(path, data))
    return [
        TablePart(path.name, start, len(some), ListRows(some), reader)
        for start in range(0, len(rows), part_size)
        if (some := tuple(rows[start : start + part_size]))
    ]


def find_root(table: Path, data: DataSettings) -> Path:
    """Return the folder at which relative file names in a table begin."""
    return Path(data.root) if data.root else table.parent


def _json_rows(path: Path, root: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except RecursionError:
        raise DataError(f"{path} holds lists inside one another, too deep to be read") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if isinstance(rows, dict) and rows:
        return read_metadata(rows, path, root)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path} must be a list of objects like {{"image": "cat.png", "text": "a cat"}}')
    return rows
