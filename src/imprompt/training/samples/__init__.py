"""Raw data → samples: folders, tables, Hugging Face data sets and tar shards, all as parts of samples.

A missing caption makes a sample `Unreadable`: taken for an empty one, it would train what dropping the text
trains, and more of it than was asked for. Data without captions says so by an empty `data.columns.text`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imprompt.errors import DataError
from imprompt.training.config import DataSettings
from imprompt.training.samples.folder import folder_parts
from imprompt.training.samples.sample import Part, Sample, Unreadable
from imprompt.training.samples.tables import json_parts

__all__ = ["Part", "Sample", "Unreadable", "open_source"]

_TABLES: Mapping[str, Callable[[Path, DataSettings, int], Sequence[Part]]] = {".json": json_parts}


def open_source(source: str, data: DataSettings, part_size: int) -> Sequence[Part]:
    """Open data; nothing is decoded yet. For what `source` may be, see `DataSettings.source`.

    Returns:
        parts of at most `part_size` samples each, which cover the source in order

    Raises:
        DataError: no such source, none of a known form, no samples in it, or a column that it has not
        MissingExtra: Parquet needs `imprompt[train]`, Hugging Face data sets `imprompt[datasets]`
    """
    parts = _open(source, data, part_size)
    if not parts:
        raise DataError(f"{source} has no pictures")
    return parts


def _open(source: str, data: DataSettings, part_size: int) -> Sequence[Part]:
    path = Path(source)
    if not source or not path.exists():
        raise DataError(f"data.source: there is no {source!r}; it must be a folder, a table or tar files")
    if path.is_dir():
        return folder_parts(path, data, part_size)
    if path.suffix not in _TABLES:
        raise DataError(
            f"{source} is of no known form; known are {', '.join(_TABLES)}, tar files and folders"
        )
    return _TABLES[path.suffix](path, data, part_size)
