"""Tables that are read line by line (JSON lines, CSV, TSV); a part stores where its first row begins."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imprompt.errors import DataError
from imprompt.training.config import DataSettings
from imprompt.training.samples.files import is_not_fetched
from imprompt.training.samples.rows import RowReader, TableRow, find_columns
from imprompt.training.samples.sample import Unusable
from imprompt.training.samples.tables import TablePart, find_root

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Largest JSON line, which may hold a face embedding; a longer one is read in pieces, none of which is
JSON."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class _TableIndex(NamedTuple):
    """Byte offsets of the parts, the number of rows, and the columns."""

    starts: list[int]
    rows: int
    columns: set[str]


class LineFormat(NamedTuple):
    """The format of the rows.

    Args:
        header: columns of a CSV; None for JSON lines
        delimiter: separator of a CSV's cells
    """

    header: tuple[str, ...] | None = None
    delimiter: str = ","


@dataclass(frozen=True)
class LineRows:
    """Rows of a file, starting at an offset.

    Args:
        path: the file
        offset: byte offset of the first row
        form: format of its rows
    """

    path: Path
    offset: int
    form: LineFormat

    @property
    def state(self) -> tuple[object, ...]:
        """Nothing, as the cells cover everything."""
        return ()

    def read(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            yield from _rows(file, self.form)

    def read_names(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`."""
        return self.read()


def open_json_lines(path: Path, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    """Open a file with a JSON object on each line.

    Raises:
        DataError: it cannot be read, or has not a column
    """
    return _parts(path, LineFormat(), 0, data, part_size)


def open_csv(path: Path, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    """Open a CSV file whose first row names the columns; quoted cells may hold line breaks.

    A list (several references, a face embedding) is written as JSON: `[0.1, 0.2]`.

    Raises:
        DataError: it cannot be read, or has not a column
    """
    return _cell_parts(path, ",", data, part_size)


def open_tsv(path: Path, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    """Open a CSV file with tabs between its cells, which may be quoted.

    Raises:
        DataError: it cannot be read, has not a column, or a cell begins with a quote that is no CSV's
    """
    return _cell_parts(path, "\t", data, part_size)


def _cell_parts(path: Path, delimiter: str, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    with _readable(path).open("rb") as file:
        header = tuple(next(_cells(file, delimiter), []))
        return _parts(path, LineFormat(header, delimiter), file.tell(), data, part_size)


def _parts(
    path: Path, form: LineFormat, start: int, data: DataSettings, part_size: int
) -> Sequence[TablePart]:
    found = _scan(_readable(path), form, start, part_size)
    there = found.columns if form.header is None else set(form.header)
    reader = RowReader(find_columns(data.columns, there, str(path)), find_root(path, data))
    return [
        TablePart(path.name, first, min(part_size, found.rows - first), LineRows(path, at, form), reader)
        for first, at in zip(range(0, found.rows, part_size), found.starts, strict=True)
    ]


def _scan(path: Path, form: LineFormat, start: int, part_size: int) -> _TableIndex:
    starts, count, columns = [], 0, set()
    with path.open("rb") as file:
        file.seek(start)
        for row in _rows(file, form):
            if count % part_size == 0:
                starts.append(start)
            count, start = count + 1, file.tell()
            columns.update(() if isinstance(row, Unusable) else row)
    return _TableIndex(starts, count, columns)


def _rows(file: BinaryIO, form: LineFormat) -> Iterator[TableRow | Unusable]:
    """Yield rows without those not fetched; after each the file is positioned behind it."""
    header, delimiter = form
    if header is None:
        lines = iter(lambda: file.readline(MAX_LINE_BYTES), b"")
        rows = (_json_row(line) for line in lines if line.strip())
    else:
        rows = (_csv_row(cells, header) for cells in _cells(file, delimiter))
    yield from (row for row in rows if isinstance(row, Unusable) or not is_not_fetched(row))


def _json_row(line: bytes) -> TableRow | Unusable:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Unusable("it is no JSON")
    return row if isinstance(row, dict) else Unusable("it is no JSON object")


def _csv_row(cells: list[str], header: tuple[str, ...]) -> TableRow | Unusable:
    if len(cells) != len(header):
        return Unusable(f"it has {len(cells)} cells, and the table has {len(header)} columns")
    if not all(cell.isascii() or _is_text(cell) for cell in cells):
        return Unusable("it is not UTF-8")
    return dict(zip(header, cells, strict=True))


def _is_text(cell: str) -> bool:
    """Whether all bytes were UTF-8; others have become lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in cell)


def _cells(file: BinaryIO, delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of each row; a row may span several lines, which are read one at a time."""
    is_tsv = delimiter == "\t"  # which some write without quoting: then a quote in front would eat lines
    encoding = "utf-8-sig" if file.tell() == 0 else "utf-8"
    lines = (line.decode(encoding, "surrogateescape") for line in iter(file.readline, b""))
    try:
        yield from (cells for cells in csv.reader(lines, delimiter=delimiter, strict=is_tsv) if cells)
    except csv.Error as error:
        kind = "TSV whose cells are in CSV's quotes or in none" if is_tsv else "CSV"
        raise DataError(f"{file.name} is no {kind}: {error}") from error


def _readable(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            begins = file.read(2)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if begins in _UTF16:
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
    return path
