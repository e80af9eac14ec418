"""Tar files that gzip has packed: unpacked once into a temporary file, where samples are found by place.

Gzip can be read from its beginning only, and samples are read by part, by several processes and in any order.
"""

import functools
import gzip
import io
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imprompt.training.samples.files import state
from imprompt.training.samples.headers import CutOff

TARS = (".tar", ".tar.gz", ".tgz")
"""What tar files' names end in, in small letters."""

MAX_GROWTH = 20
"""How many times its size a packed tar file may have unpacked; pictures hardly grow, and text fourfold."""

MIN_UNPACKED_BYTES = 64 * 1024 * 1024
"""So much any packed tar file may have."""

UNPACKED_AT_ONCE = 4
"""Packed tar files that a process keeps unpacked; those read last."""

_CHUNK = 1024 * 1024


def is_tar(name: str) -> bool:
    """Whether a file is a tar file, packed or not, by its name."""
    return name.lower().endswith(TARS)


@contextmanager
def open_tar(path: Path) -> Iterator[BinaryIO]:
    """Open a tar file for reading at any place.

    Raises:
        CutOff: what is packed cannot be unpacked, or grows beyond MAX_GROWTH
        OSError: it cannot be read, or there is no room for what it unpacks to
    """
    if path.name.lower().endswith(".tar"):
        with path.open("rb") as file:
            yield file
    else:
        yield io.BufferedReader(_Places(_unpacked(path, state(path))))


@functools.lru_cache(maxsize=UNPACKED_AT_ONCE)
def _unpacked(path: Path, _: tuple[int, int]) -> "_Unpacked":
    unpacked = _Unpacked()
    _unpack(path, unpacked.file)
    return unpacked


class _Unpacked:
    """A file without a name; it is gone when nobody reads it any more."""

    def __init__(self) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self.file.close)


def _unpack(path: Path, unpacked: BinaryIO) -> None:
    limit = max(MIN_UNPACKED_BYTES, MAX_GROWTH * path.stat().st_size)
    size = 0
    try:
        with gzip.open(path) as packed:
            while chunk := packed.read(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise CutOff(
                        f"unpacks to more than {limit:,} bytes; if that is right, unpack it (gunzip)"
                    )
                unpacked.write(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CutOff(f"is not what gzip packs, or is cut off: {error}") from error
    unpacked.flush()


class _Places(io.RawIOBase):
    """Reads a file that others read too: its place is its own.

    Args:
        unpacked: is kept open as long as this is
    """

    def __init__(self, unpacked: _Unpacked) -> None:
        self._unpacked = unpacked
        self._at = 0
        self.mode, self.name = "rb", ""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The file's."""
        return self._unpacked.file.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As files do, from the beginning, from here or from the end."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self.fileno()).st_size}
        self._at = origin[whence] + offset
        return self._at

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As files do."""
        content = os.pread(self.fileno(), len(buffer), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
