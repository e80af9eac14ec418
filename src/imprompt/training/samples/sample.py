"""One training sample as it lies in the data: encoded pictures, not yet decoded, and words."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A target picture, its caption, and what it may be prompted with.

    Attributes:
        name: where it is, for messages: a path, "00001.tar:000123", "train.jsonl line 7"
        image: the target, an encoded picture (PNG, JPEG, ...)
        text: the caption
        references: pictures to prompt with; none means the target itself
        mask: a grey picture, encoded; black is where the loss does not look
        face: an embedding of the face in the target, "512", float32
    """

    name: str
    image: bytes
    text: str
    references: tuple[bytes, ...] = ()
    mask: bytes | None = None
    face: np.ndarray | None = None

    @property
    def key(self) -> bytes:
        """SHA-256 of the content, 32 bytes: the same sample has the same key wherever it lies."""
        face = b"" if self.face is None else np.ascontiguousarray(self.face, dtype=np.float32).tobytes()
        parts = (self.image, self.text.encode(), *self.references, self.mask or b"", face)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()


@dataclass(frozen=True)
class Unreadable:
    """A sample that cannot be used, and why: `reason` is a phrase ("no such file")."""

    name: str
    reason: str


class Unusable(Exception):
    """Raised while one sample is read; the message is the reason, a phrase. It never leaves this package."""


def read_sample(name: str, read: Callable[[], Sample]) -> Sample | Unreadable:
    """Read one sample, or say why it cannot be used."""
    try:
        return read()
    except Unusable as fault:
        return Unreadable(name, str(fault))


@runtime_checkable
class Part(Protocol):
    """Some consecutive samples of a source, read when asked for; small and picklable, for other processes.

    Attributes:
        identity: changes when the files behind it do: names without folders, sizes and times of change
    """

    @property
    def identity(self) -> str:
        """See above."""
        ...

    def __len__(self) -> int: ...

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read them, in order; files that are missing or damaged come as `Unreadable`, in their place."""
        ...
