"""Raw data → samples: folders, tables, Hugging Face datasets and tar shards, all as parts of samples.

A missing caption makes a sample `Unreadable`: an empty one would act like dropped text, more often than
configured. For data without captions `data.columns.text` is empty.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imprompt.errors import DataError
from imprompt.training.config import DataSettings
from imprompt.training.samples.files import is_hidden
from imprompt.training.samples.folder import open_folder
from imprompt.training.samples.gzip_tars import TARS, is_tar
from imprompt.training.samples.hub import open_hub
from imprompt.training.samples.line_tables import open_csv, open_json_lines, open_tsv
from imprompt.training.samples.name_patterns import expand_paths
from imprompt.training.samples.parquet import open_parquet
from imprompt.training.samples.sample import Part, Sample, Unreadable
from imprompt.training.samples.tables import open_json
from imprompt.training.samples.tars import open_tars

__all__ = ["Part", "Sample", "Unreadable", "open_source"]

_HUB = "hf:"
_TABLES: Mapping[str, Callable[[Path, DataSettings, int], Sequence[Part]]] = {
    ".json": open_json,
    ".jsonl": open_json_lines,
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".parquet": open_parquet,
}
_IN_FOLDERS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Tables that describe a folder of images (Hugging Face's image folders)."""


def open_source(source: str, data: DataSettings, part_size: int) -> Sequence[Part]:
    """Open data without decoding them. For the kinds of `source` see `DataSettings.source`.

    Returns:
        parts of at most `part_size` samples each, which cover the source in order

    Raises:
        DataError: the source is missing, of an unknown form or empty, or lacks a column
        MissingExtra: Parquet needs `imprompt[train]`, Hugging Face data sets `imprompt[datasets]`
    """
    if not source:
        raise DataError("data.source is empty; it must be a folder, a table, tar files or hf:owner/name")
    parts = _open(source, data, part_size)
    if not parts:
        raise DataError(f"{source} has no pictures")
    return parts


def _open(source: str, data: DataSettings, part_size: int) -> Sequence[Part]:
    if source.startswith(_HUB):
        return open_hub(source.removeprefix(_HUB), data, part_size)
    if os.path.isdir(source):  # Path's own raises for a name that is too long
        return _open_folder(Path(source), data, part_size)
    paths = expand_paths(source)
    if all(is_tar(path.name) for path in paths):
        return open_tars(paths, data, part_size)
    if unknown := {path.suffix for path in paths if path.suffix.lower() not in _TABLES}:
        known = ", ".join((*_TABLES, *TARS))
        raise DataError(
            f"{source}: files ending in {min(unknown)!r} are not known; known are {known}, folders"
        )
    return [part for path in paths for part in _TABLES[path.suffix.lower()](path, data, part_size)]


def _open_folder(folder: Path, data: DataSettings, part_size: int) -> Sequence[Part]:
    """Open a folder with a table, with tar files, or with images and captions."""
    tables = [folder / name for name in _IN_FOLDERS if (folder / name).exists()]
    if len(tables) > 1:
        raise DataError(f"{folder} has both {tables[0].name} and {tables[1].name}; name one as data.source")
    if tables:
        return _TABLES[tables[0].suffix](tables[0], data, part_size)
    if tars := sorted(path for path in folder.iterdir() if is_tar(path.name) and not is_hidden(path.name)):
        return open_tars(tars, data, part_size)
    return open_folder(folder, data, part_size)
