"""A row of a table → a sample: which column is what, and where its pictures are."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imprompt.errors import DataError
from imprompt.training.config import Columns
from imprompt.training.samples.files import check_text, face_embedding, read_bytes, state, vector
from imprompt.training.samples.sample import Sample, Unreadable, Unusable, read_sample

ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "image": ("image_file", "file_name"),
    "face": ("id_embed_file",),
}
"""Other names of our default columns: the official scripts' (tutorial_train.py, tutorial_train_faceid.py),
and that of Hugging Face's image folders."""

Row = Mapping[str, Any]


class Named(NamedTuple):
    """What the table calls its columns; "" for what it has not."""

    image: str
    text: str
    reference: str
    mask: str
    face: str


def find_columns(columns: Columns, there: Collection[str], source: str) -> Named:
    """Find out what a table calls its columns.

    The picture's must be there, and the text's unless `columns.text` is empty, which says that there are no
    captions. Of the others, those that were not asked for by name may be missing.

    Raises:
        DataError: one that is needed or was asked for is not there
    """
    return Named(*(_find(field, columns, there, source) for field in Named._fields))


def _find(field: str, columns: Columns, there: Collection[str], source: str) -> str:
    name = getattr(columns, field)
    default = Columns.model_fields[field].default
    candidates = (name, *ALSO_CALLED.get(field, ())) if name == default else (name,)
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
    """Rows of one table → samples.

    Args:
        columns: what they are called
        root: where relative file names begin
    """

    columns: Named
    root: Path

    def sample(self, row: Row | Unusable, name: str) -> Sample | Unreadable:
        """The sample in a row, or why it cannot be used."""
        return read_sample(name, lambda: self._read(row, name))

    def states(self, row: Row | Unusable) -> list[object]:
        """What of a row and of the files that it names tells that they have changed."""
        if isinstance(row, Unusable):
            return [str(row)]
        files = [self.root / value for value in self._files(row)]
        named = {column: repr(row.get(column)) for column in self.columns if column}
        return [named, *(state(file) for file in files)]

    def _read(self, row: Row | Unusable, name: str) -> Sample:
        if isinstance(row, Unusable):
            raise row
        image = self._pictures(row, self.columns.image)
        if len(image) != 1:
            raise Unusable(f"it has {len(image)} pictures in the column {self.columns.image!r}, not one")
        mask = self._pictures(row, self.columns.mask)
        references = self._pictures(row, self.columns.reference)
        return Sample(name, image[0], self._text(row), references, mask[0] if mask else None, self._face(row))

    def _text(self, row: Row) -> str:
        if not self.columns.text:
            return ""
        text = row.get(self.columns.text)
        if not isinstance(text, str):
            raise Unusable(f"it has no caption in the column {self.columns.text!r}")
        return check_text(text.strip())

    def _pictures(self, row: Row, column: str) -> tuple[bytes, ...]:
        return tuple(self._bytes(value, column) for value in _listed(row.get(column) if column else None))

    def _bytes(self, value: object, column: str) -> bytes:
        """A picture as it may stand in a table: a file's name, its bytes, or both (Hugging Face's form)."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            kind = type(value).__name__
            raise Unusable(f"in the column {column!r} is no file name and no picture, but {kind}")
        return read_bytes(self.root / value)

    def _face(self, row: Row) -> np.ndarray | None:
        value = row.get(self.columns.face) if self.columns.face else None
        if value is None or value == "":
            return None
        if isinstance(value, str):
            value = _from_json(value) or read_bytes(self.root / value)
        return face_embedding(value) if isinstance(value, bytes) else vector(value)

    def _files(self, row: Row) -> Iterator[str]:
        for column in (self.columns.image, self.columns.reference, self.columns.mask, self.columns.face):
            yield from (value for value in _listed(row.get(column)) if isinstance(value, str))


def _listed(value: object) -> list[object]:
    """One or several: a list as it stands or as JSON, nothing as an empty one."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return _from_json(value) or [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _from_json(cell: str) -> list[Any]:
    """The list that a cell of a CSV spells; empty if it is none."""
    if not cell.startswith("["):
        return []
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return []
