"""One training sample as the data hold it: encoded images and text."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A target image, its caption, and its image prompts.

    Attributes:
        name: its location, for messages: a path, "00001.tar:000123", "train.jsonl line 7"
        image: the target, an encoded picture (PNG, JPEG, ...)
        text: the caption
        references: image prompts; none means the target itself
        mask: an encoded grayscale image; the loss ignores black areas
        face: an embedding of the face in the image prompt, "d" (512 by ArcFace), float32
    """

    name: str
    image: bytes
    text: str
    references: tuple[bytes, ...] = ()
    mask: bytes | None = None
    face: np.ndarray | None = None

    @property
    def key(self) -> bytes:
        """SHA-256 of the content, 32 bytes; the same sample has the same key in every source."""
        face = b"" if self.face is None else np.ascontiguousarray(self.face, dtype=np.float32).tobytes()
        parts = (self.image, self.text.encode(), *self.references, self.mask or b"", face)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()


@dataclass(frozen=True)
class Unreadable:
    """A sample that is unusable; `reason` is a phrase ("no such file")."""

    name: str
    reason: str


class Unusable(Exception):
    """Raised while a sample is read; the message is a phrase. It never leaves this package."""


def read_sample(name: str, read: Callable[[], Sample]) -> Sample | Unreadable:
    """Read one sample, or return why it is unusable."""
    try:
        return read()
    except Unusable as fault:
        return Unreadable(name, str(fault))


@runtime_checkable
class Part(Protocol):
    """Some consecutive samples of a source, read on demand; small and picklable, for other processes.

    Attributes:
        identity: fingerprint of the files: names without folders, sizes and times of change
    """

    @property
    def identity(self) -> str:
        """See above."""
        ...

    def __len__(self) -> int: ...

    def samples(self) -> Iterator[Sample | Unreadable]:
        """Read the samples in order; missing or damaged ones become `Unreadable`, in their place."""
        ...
