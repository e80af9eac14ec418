"""Tar files in the layout of WebDataset, as img2dataset writes them.

Files of one sample are consecutive and share their name up to the first dot (of the last part of the path):

    000000012.jpg               the target: the first suffix of a picture
    000000012.txt               its caption; or 000000012.caption, or "caption" in 000000012.json
    000000012.reference.png     a picture to prompt with in place of the target; .reference.1.png, ...
    000000012.mask.png          where the loss looks
    000000012.face.npy          the embedding of the face in it

Hidden files (macOS's `._000000012.jpg`) belong to no sample. A sample without an image is skipped if its
.json records that it could not be fetched ("status", img2dataset). Opening reads headers only; a part stores
where its first sample begins, and reads one sample at a time. Gzip files are decompressed first
(gzip_tars.py).
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from imprompt.errors import DataError
from imprompt.training.config import Columns, DataSettings
from imprompt.training.samples.files import (
    CAPTIONS,
    PICTURES,
    check_bytes,
    check_text,
    decode_caption,
    explain_no_caption,
    file_state,
    hash_words,
    is_hidden,
    is_not_fetched,
    list_caption_suffixes,
    read_face_embedding,
)
from imprompt.training.samples.gzip_tars import open_tar
from imprompt.training.samples.sample import Sample, Unreadable, Unusable, read_sample
from imprompt.training.samples.tar_headers import DamagedTar, TarMember, read_headers

_CAPTIONS = tuple(f".{word}" for word in CAPTIONS)

Suffixes = Mapping[str, TarMember]
"""The files of one sample: "jpg" → the position of its bytes."""


class TarSample(NamedTuple):
    """The files of one sample; `offset` is where the header of the first one begins."""

    key: str
    offset: int
    files: Suffixes


@dataclass(frozen=True)
class TarPart:
    """Some consecutive samples of a tar file."""

    path: Path
    first: int
    offset: int
    count: int
    columns: Columns

    @property
    def identity(self) -> str:
        """Fingerprint of the tar file's name, size and time of change, and of the position in it."""
        words = self.columns.model_dump().values()
        return hash_words((self.path.name, file_state(self.path), self.offset, self.count, *words))

    def __len__(self) -> int:
        return self.count

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read the samples in the order of the tar file."""
        with open_tar(self.path) as file:
            file.seek(self.offset)
            for group in itertools.islice(_groups(file, self.columns), self.count):
                name = f"{self.path.name}:{group.key}"
                yield read_sample(name, lambda group=group, name=name: self._read(file, group.files, name))

    def _read(self, file: BinaryIO, files: Suffixes, name: str) -> Sample:
        image = find_picture(files, self.columns)
        if image is None:
            raise Unusable(f"it has no picture{_explain_dots(files, self.columns)}")
        mask, face = (_files_of_role(files, word) for word in (self.columns.mask, self.columns.face))
        references = _files_of_role(files, self.columns.reference)
        return Sample(
            name=name,
            image=_content(file, image),
            text=_text(file, files, self.columns),
            references=tuple(_content(file, member) for member in references),
            mask=_content(file, mask[0]) if mask else None,
            face=read_face_embedding(_content(file, face[0])) if face else None,
        )


def open_tars(paths: Sequence[Path], data: DataSettings, part_size: int) -> Sequence[TarPart]:
    """Open tar files, one after another; a part never spans two.

    Raises:
        DataError: tar files that are cut off or are none (all are named), or a suffix that no file has
    """
    faults: list[str] = []
    suffixes: set[str] = set()
    parts: list[TarPart] = []
    for path in paths:
        try:
            parts += _index(path, data.columns, part_size, suffixes)
        except (DamagedTar, OSError) as fault:
            faults.append(f"{path} {fault}")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{'; '.join(faults[:3])}{more}: fetch again, or leave out")
    _check_suffixes(suffixes, data.columns, paths[0])
    return parts


def find_picture(files: Suffixes, columns: Columns) -> TarMember | None:
    """Return the target of a sample: the configured suffix, or by default the first image."""
    if columns.image != Columns.model_fields["image"].default:
        return files.get(columns.image)
    return next((member for suffix, member in files.items() if f".{suffix.lower()}" in PICTURES), None)


def _index(path: Path, columns: Columns, part_size: int, suffixes: set[str]) -> list[TarPart]:
    starts: list[int] = []
    count = 0
    with open_tar(path) as file:
        for group in _groups(file, columns):
            if count % part_size == 0:
                starts.append(group.offset)
            count += 1
            suffixes.update(group.files)
    firsts = range(0, count, part_size)
    return [
        TarPart(path, first, start, min(part_size, count - first), columns)
        for first, start in zip(firsts, starts, strict=True)
    ]


def _groups(file: BinaryIO, columns: Columns) -> Iterator[TarSample]:
    """Yield samples from the current position, without those that img2dataset could not fetch."""
    visible = (member for member in read_headers(file) if not is_hidden(member.name))
    for key, members in itertools.groupby(visible, key=lambda member: _split(member.name)[0]):
        files: dict[str, TarMember] = {}
        for member in members:
            files.setdefault(_split(member.name)[1], member)
        group = TarSample(key, next(iter(files.values())).header, files)
        if find_picture(files, columns) is not None or not is_not_fetched(_facts(file, files)):
            yield group


def _split(name: str) -> tuple[str, str]:
    """Split `a/b.reference.png` into `a/b` and `reference.png`."""
    folder, last = os.path.split(name)
    stem, _, suffix = last.partition(".")
    return os.path.join(folder, stem), suffix


def _facts(file: BinaryIO, files: Suffixes) -> Mapping[str, Any]:
    """Return what img2dataset recorded of a sample as JSON; empty if there is nothing."""
    if "json" not in files:
        return {}
    try:
        facts = json.loads(_content(file, files["json"]))
    except (ValueError, RecursionError, Unusable):
        return {}
    return facts if isinstance(facts, dict) else {}


def _text(file: BinaryIO, files: Suffixes, columns: Columns) -> str:
    if not columns.text:
        return ""
    for suffix in list_caption_suffixes(columns):
        if suffix in files:
            return decode_caption(_content(file, files[suffix]))
    is_default = columns.text == Columns.model_fields["text"].default
    noted = _facts(file, files).get("caption") if is_default else None
    if not isinstance(noted, str):
        raise Unusable(f"{explain_no_caption('', columns)}{_explain_dots(files, columns)}")
    return check_text(noted.strip())


def _explain_dots(files: Suffixes, columns: Columns) -> str:
    """Return half a sentence if the name of an image or caption has more dots than that of its suffix."""
    roles = {columns.reference, columns.mask, columns.face}
    for suffix, member in files.items():
        before, _, last = suffix.rpartition(".")
        if before and before.split(".")[0] not in roles and f".{last.lower()}" in (*PICTURES, *_CAPTIONS):
            return (
                f"; {member.name!r} has more than one dot, and in a tar file the suffix begins at the first "
                f"({suffix!r}): rename it without the others"
            )
    return ""


def _files_of_role(files: Suffixes, word: str) -> list[TarMember]:
    """Return files whose suffix is the word or begins with it (`reference.1.png`), sorted by suffix."""
    found = [suffix for suffix in files if word and (suffix == word or suffix.startswith(f"{word}."))]
    return [files[suffix] for suffix in sorted(found)]


def _content(file: BinaryIO, member: TarMember) -> bytes:
    check_bytes(member.size, member.name)
    file.seek(member.offset)
    return file.read(member.size)


def _check_suffixes(there: set[str], columns: Columns, path: Path) -> None:
    """Refuse a suffix of `columns` that was set and that no file has."""
    for field, kind in Columns.model_fields.items():
        word = getattr(columns, field)
        if word in ("", kind.default) or any(name == word or name.startswith(f"{word}.") for name in there):
            continue
        raise DataError(
            f"{path} and those with it have no file ending in .{word}, which data.columns.{field} asks for; "
            f"there are: {', '.join(sorted(there))}"
        )
