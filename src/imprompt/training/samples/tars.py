"""Tar files as WebDataset lays them out and img2dataset writes them.

Files of one sample follow one another and have one name up to the first dot (of the last part of the path):

    000000012.jpg               the target: the first suffix of a picture
    000000012.txt               its caption; or 000000012.caption, or "caption" in 000000012.json
    000000012.reference.png     a picture to prompt with in place of the target; .reference.1.png, ...
    000000012.mask.png          where the loss looks
    000000012.face.npy          the embedding of the face in it

Hidden files (macOS's `._000000012.jpg`) belong to no sample. A sample without a picture whose .json says that
it could not be fetched ("status", img2dataset) is none.
Opening reads headers only; a part keeps where its first sample begins, and reads one sample at a time. What
gzip has packed is unpacked first (packed.py).
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
    caption,
    caption_suffixes,
    check_bytes,
    check_text,
    face_embedding,
    fingerprint,
    is_hidden,
    no_caption,
    state,
    was_not_fetched,
)
from imprompt.training.samples.headers import CutOff, Member, read_headers
from imprompt.training.samples.packed import open_tar
from imprompt.training.samples.sample import Sample, Unreadable, Unusable, read_sample

_CAPTIONS = tuple(f".{word}" for word in CAPTIONS)

Suffixes = Mapping[str, Member]
"""What belongs to one sample: "jpg" → where its bytes are."""


class Group(NamedTuple):
    """The files of one sample; `offset` is where the first one's header begins."""

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
        """Of the tar file's name, size and time of change, and of the place in it."""
        words = self.columns.model_dump().values()
        return fingerprint((self.path.name, state(self.path), self.offset, self.count, *words))

    def __len__(self) -> int:
        return self.count

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read them, in the tar's order."""
        with open_tar(self.path) as file:
            file.seek(self.offset)
            for group in itertools.islice(_groups(file, self.columns), self.count):
                name = f"{self.path.name}:{group.key}"
                yield read_sample(name, lambda group=group, name=name: self._read(file, group.files, name))

    def _read(self, file: BinaryIO, files: Suffixes, name: str) -> Sample:
        image = find_picture(files, self.columns)
        if image is None:
            raise Unusable(f"it has no picture{_dots(files, self.columns)}")
        mask, face = (_having(files, word) for word in (self.columns.mask, self.columns.face))
        references = _having(files, self.columns.reference)
        return Sample(
            name=name,
            image=_content(file, image),
            text=_text(file, files, self.columns),
            references=tuple(_content(file, member) for member in references),
            mask=_content(file, mask[0]) if mask else None,
            face=face_embedding(_content(file, face[0])) if face else None,
        )


def tar_parts(paths: Sequence[Path], data: DataSettings, part_size: int) -> Sequence[TarPart]:
    """Tar files, one after another; a part never spans two.

    Raises:
        DataError: tar files that are cut off or are none (all are named), or a suffix that no file has
    """
    faults: list[str] = []
    suffixes: set[str] = set()
    parts: list[TarPart] = []
    for path in paths:
        try:
            parts += _index(path, data.columns, part_size, suffixes)
        except (CutOff, OSError) as fault:
            faults.append(f"{path} {fault}")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{'; '.join(faults[:3])}{more}: fetch again, or leave out")
    _check_suffixes(suffixes, data.columns, paths[0])
    return parts


def find_picture(files: Suffixes, columns: Columns) -> Member | None:
    """The target of a sample: the file of that suffix, or by default the first one of a picture's."""
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


def _groups(file: BinaryIO, columns: Columns) -> Iterator[Group]:
    """Samples from where the file stands, those left out that img2dataset could not fetch."""
    visible = (member for member in read_headers(file) if not is_hidden(member.name))
    for key, members in itertools.groupby(visible, key=lambda member: _split(member.name)[0]):
        files: dict[str, Member] = {}
        for member in members:
            files.setdefault(_split(member.name)[1], member)
        group = Group(key, next(iter(files.values())).header, files)
        if find_picture(files, columns) is not None or not was_not_fetched(_facts(file, files)):
            yield group


def _split(name: str) -> tuple[str, str]:
    """`a/b.reference.png` → `a/b` and `reference.png`."""
    folder, last = os.path.split(name)
    stem, _, suffix = last.partition(".")
    return os.path.join(folder, stem), suffix


def _facts(file: BinaryIO, files: Suffixes) -> Mapping[str, Any]:
    """What img2dataset notes of a sample, as JSON; nothing if it is none."""
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
    for suffix in caption_suffixes(columns):
        if suffix in files:
            return caption(_content(file, files[suffix]))
    is_default = columns.text == Columns.model_fields["text"].default
    noted = _facts(file, files).get("caption") if is_default else None
    if not isinstance(noted, str):
        raise Unusable(f"{no_caption('', columns)}{_dots(files, columns)}")
    return check_text(noted.strip())


def _dots(files: Suffixes, columns: Columns) -> str:
    """Half a sentence, if a picture's or a caption's name has more dots than the one before its suffix."""
    roles = {columns.reference, columns.mask, columns.face}
    for suffix, member in files.items():
        before, _, last = suffix.rpartition(".")
        if before and before.split(".")[0] not in roles and f".{last.lower()}" in (*PICTURES, *_CAPTIONS):
            return (
                f"; {member.name!r} has more than one dot, and in a tar file the suffix begins at the first "
                f"({suffix!r}): rename it without the others"
            )
    return ""


def _having(files: Suffixes, word: str) -> list[Member]:
    """Files whose suffix is the word, or begins with it (`reference.1.png`), in the order of the suffixes."""
    found = [suffix for suffix in files if word and (suffix == word or suffix.startswith(f"{word}."))]
    return [files[suffix] for suffix in sorted(found)]


def _content(file: BinaryIO, member: Member) -> bytes:
    check_bytes(member.size, member.name)
    file.seek(member.offset)
    return file.read(member.size)


def _check_suffixes(there: set[str], columns: Columns, path: Path) -> None:
    """A suffix that was asked for by name must be there at least once."""
    for field, kind in Columns.model_fields.items():
        word = getattr(columns, field)
        if word in ("", kind.default) or any(name == word or name.startswith(f"{word}.") for name in there):
            continue
        raise DataError(
            f"{path} and those with it have no file ending in .{word}, which data.columns.{field} asks for; "
            f"there are: {', '.join(sorted(there))}"
        )
