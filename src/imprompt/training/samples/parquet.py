"""Parquet files: parts end with row groups; only needed columns are read, a few rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.errors import DataError, MissingExtra
from imprompt.runtime.foreign_models import first_line
from imprompt.training.config import DataSettings
from imprompt.training.samples.files import file_state, is_not_fetched
from imprompt.training.samples.rows import RowReader, TableRow, find_columns
from imprompt.training.samples.sample import Unusable
from imprompt.training.samples.tables import TablePart, find_root

ROWS_AT_ONCE = 32
"""Rows in memory at once; they may hold images."""

STATUS = "status"
"""The column in which img2dataset records whether it could fetch a row's image."""

_TEXTS = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class ParquetRows:
    """Rows of one row group.

    Args:
        path: the file
        group: index of the row group
        skipped: number of its rows that come before
        columns: columns to read
        name_columns: those of them that can hold file names
        has_status: whether img2dataset recorded in it which rows have no image; these are skipped
    """

    path: Path
    group: int
    skipped: int
    columns: tuple[str, ...]
    name_columns: tuple[str, ...]
    has_status: bool = False

    @property
    def state(self) -> tuple[object, ...]:
        """The state of the file, which may hold the images."""
        return self.path.name, file_state(self.path), self.group, self.skipped, self.columns

    def read(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`."""
        return self._read(self.columns)

    def read_names(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`."""
        return self._read(self.name_columns) if self.name_columns else iter(())

    def _read(self, columns: tuple[str, ...]) -> Iterator[TableRow]:
        with _open_file(self.path) as file:
            skipped = 0
            wanted = tuple(dict.fromkeys((*columns, STATUS))) if self.has_status else columns
            batches = _batches(file, self.path, self.group, wanted)
            for batch in map(_keep_fetched, batches) if self.has_status else batches:
                before = max(0, min(self.skipped - skipped, batch.num_rows))
                skipped += before
                yield from batch.slice(before).to_pylist()


def open_parquet(path: Path, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    """Open a Parquet file; images are file names, bytes, or both as Hugging Face writes them.

    Raises:
        DataError: it is damaged, or has not a column
        MissingExtra: without pyarrow (`imprompt[train]`)
    """
    with _open_file(path) as file:
        schema = file.schema_arrow
        has_status = STATUS in schema.names and str(schema.field(STATUS).type) in _TEXTS
        lengths = [_count_rows(file, path, group, has_status) for group in range(file.num_row_groups)]
    found = find_columns(data.columns, schema.names, str(path))
    columns = tuple(dict.fromkeys(column for column in found if column))
    name_columns = tuple(column for column in columns if "binary" not in str(schema.field(column).type))
    reader = RowReader(found, find_root(path, data))
    return [
        TablePart(path.name, sum(lengths[:group]) + skipped, min(part_size, length - skipped), rows, reader)
        for group, length in enumerate(lengths)
        for skipped in range(0, length, part_size)
        if (rows := ParquetRows(path, group, skipped, columns, name_columns, has_status))
    ]


def _count_rows(file: Any, path: Path, group: int, has_status: bool) -> int:
    """Count the rows of a group without those that img2dataset could not fetch."""
    if not has_status:
        return file.metadata.row_group(group).num_rows
    return sum(_keep_fetched(batch).num_rows for batch in _batches(file, path, group, (STATUS,)))


def _keep_fetched(batch: Any) -> Any:
    """Drop the rows that img2dataset could not fetch."""
    import pyarrow

    statuses = batch.column(batch.schema.get_field_index(STATUS)).to_pylist()
    return batch.filter(pyarrow.array([not is_not_fetched({STATUS: status}) for status in statuses], "bool"))


def _open_file(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "train") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} is no Parquet file, or is damaged: {first_line(error)}") from error


def _batches(file: Any, path: Path, group: int, columns: tuple[str, ...]) -> Iterator[Any]:
    try:
        yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns))
    except OSError as error:
        raise DataError(f"{path} is damaged in row group {group}: {first_line(error)}") from error
