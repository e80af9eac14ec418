"""A table row → a sample: the meaning of its columns and the location of its images."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imprompt.errors import DataError
from imprompt.training.config import Columns
from imprompt.training.samples.files import (
    check_text,
    check_vector,
    file_state,
    read_bytes,
    read_face_embedding,
)
from imprompt.training.samples.sample import Sample, Unreadable, Unusable, read_sample

ALIASES: Mapping[str, tuple[str, ...]] = {
    "image": ("image_file", "file_name"),
    "face": ("id_embed_file",),
}
"""Other names of the default columns: those of the official scripts (tutorial_train.py,
tutorial_train_faceid.py) and of Hugging Face's image folders."""

TableRow = Mapping[str, Any]


class TableColumns(NamedTuple):
    """The names of the columns in a table; "" for a column that it lacks."""

    image: str
    text: str
    reference: str
    mask: str
    face: str


def find_columns(columns: Columns, there: Collection[str], source: str) -> TableColumns:
    """Find the names of the columns in a table.

    The image column is required, and so is the text column unless `columns.text` is empty. The others are
    required only if the configuration names them.

    Raises:
        DataError: a required column is missing
    """
    return TableColumns(*(_find(field, columns, there, source) for field in TableColumns._fields))


def _find(field: str, columns: Columns, there: Collection[str], source: str) -> str:
    name = getattr(columns, field)
    default = Columns.model_fields[field].default
    candidates = (name, *ALIASES.get(field, ())) if name == default else (name,)
    found = next((candidate for candidate in candidates if candidate in there), "")
    is_needed = field == "image" or (field == "text" and name) or (name and name != default)
    if is_needed and not found:
        raise DataError(
            f"{source} has no column {name!r}, which data.columns.{field} asks for; its columns are: "
            f"{', '.join(sorted(there))}"
        )
    return found


@dataclass(frozen=True)
class RowReader:
    """Converts rows of one table to samples.

    Args:
        columns: their names
        root: folder at which relative file names begin
    """

    columns: TableColumns
    root: Path

    def sample(self, row: TableRow | Unusable, name: str) -> Sample | Unreadable:
        """Return the sample in a row, or why it is unusable."""
        return read_sample(name, lambda: self._read(row, name))

    def states(self, row: TableRow | Unusable) -> list[object]:
        """Return what changes when a row or a file that it names changes."""
        if isinstance(row, Unusable):
            return [str(row)]
        files = [self.root / value for value in self._files(row)]
        named = {column: repr(row.get(column)) for column in self.columns if column}
        return [named, *(file_state(file) for file in files)]

    def _read(self, row: TableRow | Unusable, name: str) -> Sample:
        if isinstance(row, Unusable):
            raise row
        image = self._pictures(row, self.columns.image)
        if len(image) != 1:
            raise Unusable(f"it has {len(image)} pictures in the column {self.columns.image!r}, not one")
        mask = self._pictures(row, self.columns.mask)
        references = self._pictures(row, self.columns.reference)
        return Sample(name, image[0], self._text(row), references, mask[0] if mask else None, self._face(row))

    def _text(self, row: TableRow) -> str:
        if not self.columns.text:
            return ""
        text = row.get(self.columns.text)
        if not isinstance(text, str):
            raise Unusable(f"it has no caption in the column {self.columns.text!r}")
        return check_text(text.strip())

    def _pictures(self, row: TableRow, column: str) -> tuple[bytes, ...]:
        return tuple(self._bytes(value, column) for value in _as_list(row.get(column) if column else None))

    def _bytes(self, value: object, column: str) -> bytes:
        """Return an image of a table: a file's name, its bytes, or both (Hugging Face's form)."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            kind = type(value).__name__
            raise Unusable(f"in the column {column!r} is no file name and no picture, but {kind}")
        return read_bytes(self.root / value)

    def _face(self, row: TableRow) -> np.ndarray | None:
        value = row.get(self.columns.face) if self.columns.face else None
        if value is None or value == "":
            return None
        if isinstance(value, str):
            value = _from_json(value) or read_bytes(self.root / value)
        return read_face_embedding(value) if isinstance(value, bytes) else check_vector(value)

    def _files(self, row: TableRow) -> Iterator[str]:
        for column in (self.columns.image, self.columns.reference, self.columns.mask, self.columns.face):
            yield from (value for value in _as_list(row.get(column)) if isinstance(value, str))


def _as_list(value: object) -> list[object]:
    """Return one or several values as a list: a list, JSON of one, or nothing for an empty cell."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return _from_json(value) or [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _from_json(cell: str) -> list[Any]:
    """Parse the list in a CSV cell; return an empty list if it holds none."""
    if not cell.startswith("["):
        return []
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return []
