"""Hugging Face datasets: from the hub, from a folder of `save_to_disk`, or from a folder of data files."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.errors import DataError, MissingExtra
from imprompt.training.config import DataSettings
from imprompt.training.samples.files import is_not_fetched
from imprompt.training.samples.rows import RowReader, TableRow, find_columns
from imprompt.training.samples.sample import Unusable
from imprompt.training.samples.tables import TablePart

ROWS_AT_ONCE = 32
"""Rows in memory at once; they may hold images."""


@dataclass(frozen=True)
class HubRows:
    """Rows of a dataset, starting at `first`.

    Args:
        source: "owner/name" or a folder, with ":split" or not
        first: index of the first row
        columns: columns to read
    """

    source: str
    first: int
    columns: tuple[str, ...]

    @property
    def state(self) -> tuple[object, ...]:
        """The fingerprint that `datasets` keeps."""
        return load_split(self.source)._fingerprint, self.first, self.columns

    def read(self) -> Iterator[TableRow | Unusable]:
        """See `TableRows`; a picture is its bytes, not decoded, or the name of its file."""
        table = load_split(self.source).select_columns(list(self.columns)).with_format("arrow")
        for start in range(self.first, len(table), ROWS_AT_ONCE):
            yield from table[start : start + ROWS_AT_ONCE].to_pylist()

    def read_names(self) -> Iterator[TableRow | Unusable]:
        """Yield nothing, as the fingerprint covers the files."""
        return iter(())


def open_hub(source: str, data: DataSettings, part_size: int) -> Sequence[TablePart]:
    """Open a dataset of the hub or on disk; `source` does not include "hf:".

    Raises:
        DataError: there is none of that name here or on the hub, not that split, or not a column
        MissingExtra: without datasets (`imprompt[datasets]`)
    """
    table = load_split(source)
    columns_of_table = find_columns(data.columns, table.column_names, f"hf:{source}")
    columns = tuple(dict.fromkeys(column for column in columns_of_table if column))
    reader = RowReader(columns_of_table, Path(data.root))
    return [
        TablePart(source, first, min(part_size, len(table) - first), HubRows(source, first, columns), reader)
        for first in range(0, len(table), part_size)
    ]


@functools.lru_cache(maxsize=4)
def load_split(source: str) -> Any:
    """Load one split of a dataset as a memory map; download it if necessary.

    Raises:
        DataError: there is none, or not that split
        MissingExtra: without datasets
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets") from error
    name, _, split = (source, "", "") if Path(source).exists() else source.partition(":")
    try:
        is_saved = any(Path(name, marker).exists() for marker in ("state.json", "dataset_dict.json"))
        loaded = datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name)
    except Exception as error:  # foreign files and a network: this may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the data set hf:{source} cannot be loaded: {reason}") from error
    return _keep_fetched(_split(loaded, split, source))


def _keep_fetched(table: Any) -> Any:
    """Drop the rows that img2dataset could not fetch."""
    if "status" not in table.column_names:
        return table
    statuses = table.select_columns(["status"])[:]["status"]
    kept = [row for row, status in enumerate(statuses) if not is_not_fetched({"status": status})]
    return table if len(kept) == len(statuses) else table.select(kept)


def _split(loaded: Any, split: str, source: str) -> Any:
    """Return the split that was named, or the only one, or "train"."""
    if not isinstance(loaded, dict):
        if split:
            raise DataError(f"hf:{source}: this data set has no splits; leave out :{split}")
        return loaded
    wanted = split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if wanted not in loaded:
        raise DataError(f"hf:{source} has no split {wanted!r}; its splits are: {', '.join(loaded)}")
    return loaded[wanted]
