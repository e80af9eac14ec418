"""A folder of images, each with a caption file next to it.

    cat.png             the target, in any folder below; in the order of the paths
    cat.txt             its caption; without it cat.caption; cat.tags if `columns.text` is "tags"
    cat.reference.png   a picture to prompt with in place of the target; several: cat.reference.1.png, ...
    cat.mask.png        where the loss looks
    cat.face.npy        the embedding of the face in it

Other suffixes of images work as well. `columns` changes the words between the dots; an empty `columns.text`
means data without captions.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imprompt.errors import DataError
from imprompt.training.config import Columns, DataSettings
from imprompt.training.samples.files import (
    PICTURES,
    decode_caption,
    explain_no_caption,
    file_state,
    hash_words,
    is_hidden,
    list_caption_suffixes,
    read_bytes,
    read_face_embedding,
)
from imprompt.training.samples.sample import Sample, Unreadable, Unusable, read_sample

FACES = (".npy", ".pt", ".bin")
_PLACES = {"text": "text", "reference": "references", "mask": "mask", "face": "face"}
"""Fields of `Columns` → fields of `PictureFiles`."""


class PictureFiles(NamedTuple):
    """The files of one target: paths relative to the folder."""

    image: str
    text: str
    references: tuple[str, ...]
    mask: str
    face: str


@dataclass(frozen=True)
class FolderPart:
    """Some consecutive images of a folder."""

    folder: Path
    rows: tuple[PictureFiles, ...]
    columns: Columns
    """The roles of file names."""

    @property
    def identity(self) -> str:
        """Fingerprint of the names, sizes and times of change of the files."""
        return hash_words((bool(self.columns.text), *(self._states(row) for row in self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read the samples in the order of their paths."""
        for row in self.rows:
            yield read_sample(str(self.folder / row.image), lambda row=row: self._read(row))

    def _states(self, row: PictureFiles) -> list[tuple[str, tuple[int, int]]]:
        names = (row.image, row.text, *row.references, row.mask, row.face)
        return [(name, file_state(self.folder / name)) for name in names if name]

    def _read(self, row: PictureFiles) -> Sample:
        if self.columns.text and not row.text:
            raise Unusable(explain_no_caption(Path(row.image).stem, self.columns))
        return Sample(
            name=str(self.folder / row.image),
            image=read_bytes(self.folder / row.image),
            text=decode_caption(read_bytes(self.folder / row.text)) if row.text else "",
            references=tuple(read_bytes(self.folder / name) for name in row.references),
            mask=read_bytes(self.folder / row.mask) if row.mask else None,
            face=read_face_embedding(read_bytes(self.folder / row.face)) if row.face else None,
        )


def open_folder(folder: Path, data: DataSettings, part_size: int) -> Sequence[FolderPart]:
    """List a folder and those below it, without hidden files and folders.

    Raises:
        DataError: a word of `columns` that no file has, or a reference or mask of no picture
    """
    rows = list(_rows(folder, data.columns))
    _check_words(folder, rows, data.columns)
    return [
        FolderPart(folder, tuple(rows[start : start + part_size]), data.columns)
        for start in range(0, len(rows), part_size)
    ]


def _rows(folder: Path, columns: Columns) -> Iterator[PictureFiles]:
    names = sorted(_names(folder))
    known = set(names)
    roles = tuple(word for word in (columns.reference, columns.mask, columns.face) if word)
    beside: dict[str, list[str]] = {}
    owners: set[str] = set()
    for name in names:
        if (owner := _owner(name, roles)) is not None:
            beside.setdefault(owner, []).append(name)
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURES and _owner(name, roles) is None:
            text = _caption_file(stem, columns, known)
            yield _files(name, text, beside.get(stem, []), columns)
            owners.add(stem)
    if unowned := beside.keys() - owners:
        name = beside[min(unowned)][0]
        raise DataError(f"{folder / name} belongs to no picture: there is no {min(unowned)}.png; rename one")


def _caption_file(stem: str, columns: Columns, known: Collection[str]) -> str:
    """Return the caption file of an image; empty if there is none."""
    names = (f"{stem}.{suffix}" for suffix in list_caption_suffixes(columns))
    return next((name for name in names if name in known), "")


def _names(folder: Path) -> Iterator[str]:
    """Yield every file below the folder, its path relative to it with slashes."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inner = Path(place).relative_to(folder)
        yield from ((inner / name).as_posix() for name in names if not is_hidden(name))


def _owner(name: str, roles: tuple[str, ...]) -> str | None:
    """Return the stem to which a file like `a/cat.reference.1.png` belongs, `a/cat`; None without a role."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in (*PICTURES, *FACES):
        return None
    head, dot, last = stem.rpartition(".")
    if last.isdecimal() and "." in head:
        head, dot, last = head.rpartition(".")
    return head if dot and head and last in roles else None


def _files(image: str, text: str, beside: list[str], columns: Columns) -> PictureFiles:
    stem = os.path.splitext(image)[0]

    def files_of_role(word: str) -> list[str]:
        return [name for name in beside if word and name.startswith(f"{stem}.{word}.")]

    masks, faces = files_of_role(columns.mask), files_of_role(columns.face)
    references = tuple(files_of_role(columns.reference))
    return PictureFiles(image, text, references, masks[0] if masks else "", faces[0] if faces else "")


def _check_words(folder: Path, rows: list[PictureFiles], columns: Columns) -> None:
    """Refuse a word of `columns` that was set and that no file has."""
    if rows and columns.image != Columns.model_fields["image"].default:
        raise DataError(
            f"data.columns.image = {columns.image!r} has no effect on the folder {folder}, whose pictures "
            "are all targets: leave it out, and keep other pictures elsewhere"
        )
    for field, plain in _PLACES.items():
        word = getattr(columns, field)
        is_required = word and word != Columns.model_fields[field].default
        if is_required and not any(getattr(row, plain) for row in rows):
            name = f"NAME.{word}" if field == "text" else f"NAME.{word}.png"
            raise DataError(f"{folder} has no file like {name}, which data.columns.{field} asks for")
