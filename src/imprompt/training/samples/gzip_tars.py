"""Gzip-compressed tar files, decompressed once into a temporary file in which samples are found by offset.

Gzip can be read only from its beginning, but several processes read samples by part and in any order.
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

from imprompt.training.samples.files import file_state
from imprompt.training.samples.tar_headers import DamagedTar

TARS = (".tar", ".tar.gz", ".tgz")
"""Suffixes of tar files, in lower case."""

MAX_GROWTH = 20
"""Largest growth factor in decompression; images hardly grow, and text grows fourfold."""

MIN_UNPACKED_BYTES = 64 * 1024 * 1024
"""Size that every decompressed tar file may have."""

UNPACKED_AT_ONCE = 4
"""Number of tar files that a process keeps decompressed, those read last."""

_CHUNK = 1024 * 1024


def is_tar(name: str) -> bool:
    """Whether a file is a tar file, compressed or not, by its name."""
    return name.lower().endswith(TARS)


@contextmanager
def open_tar(path: Path) -> Iterator[BinaryIO]:
    """Open a tar file for random access.

    Raises:
        CutOff: what is packed cannot be unpacked, or grows beyond MAX_GROWTH
        OSError: it cannot be read, or there is no room for its content
    """
    if path.name.lower().endswith(".tar"):
        with path.open("rb") as file:
            yield file
    else:
        yield io.BufferedReader(_SharedReader(_unpack_cached(path, file_state(path))))


@functools.lru_cache(maxsize=UNPACKED_AT_ONCE)
def _unpack_cached(path: Path, _: tuple[int, int]) -> "_UnpackedFile":
    unpacked = _UnpackedFile()
    _unpack(path, unpacked.file)
    return unpacked


class _UnpackedFile:
    """An unnamed file that is deleted with its last reader."""

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
                    raise DamagedTar(
                        f"unpacks to more than {limit:,} bytes; if that is right, unpack it (gunzip)"
                    )
                unpacked.write(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedTar(f"is not what gzip packs, or is cut off: {error}") from error
    unpacked.flush()


class _SharedReader(io.RawIOBase):
    """Reads a shared file at a position of its own.

    Args:
        unpacked: the shared file, kept open as long as this reader
    """

    def __init__(self, unpacked: _UnpackedFile) -> None:
        self._unpacked = unpacked
        self._at = 0
        self.mode, self.name = "rb", ""

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the shared file."""
        return self._unpacked.file.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek as files do, from the beginning, the current position or the end."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self.fileno()).st_size}
        self._at = origin[whence] + offset
        return self._at

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read as files do."""
        content = os.pread(self.fileno(), len(buffer), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
