"""Results on disk: a file is written completely or not at all."""

import contextlib
import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from imprompt.errors import OutputError
from imprompt.runtime.files import find_name_fault, shorten


def check_output(path: Path, *suffixes: str) -> None:
    """Refuse, before any work is done, a path that could not be written or has none of the suffixes.

    Raises:
        OutputError: no file can have the name, the suffix is another one, the folder is missing or read-only,
            or the path exists and is no file
    """
    if fault := find_name_fault(path):
        raise OutputError(f"{shorten(str(path))} cannot be written: {fault}")
    if suffixes and path.suffix.lower() not in suffixes:
        raise OutputError(f"{path} cannot be written: its name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        command = f"mkdir -p {shlex.quote(str(path.parent))}"
        raise OutputError(
            f"{path} cannot be written: there is no folder {path.parent}; create it first: {command}"
        )
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} cannot be written: it exists and is not a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: the folder {path.parent} is read-only for you")


def number_paths(path: Path, count: int, first: int = 0) -> list[Path]:
    """Return the path itself for one file, and out-0.png, out-1.png, ... for several, from `first` on."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{first + i}") for i in range(count)]


def find_free_paths(path: Path, count: int = 1) -> list[Path]:
    """Return the paths of `count` new files, so that no existing file is overwritten.

    One file is `path` itself if that is free. Otherwise, and for several files, numbers are added to the
    name: out-0.png, out-1.png, ... They go on after the highest number that is there already.

    Args:
        path: "out.png" for the names above
        count: at least 1
    """
    if count == 1 and not os.path.lexists(path):
        return [path]
    numbered = re.compile(rf"{re.escape(path.stem)}-(\d{{1,9}}){re.escape(path.suffix)}")
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    numbers = [int(match[1]) for name in names if (match := numbered.fullmatch(name))]
    first = max(numbers, default=0 if count == 1 else -1) + 1
    return [path.with_stem(f"{path.stem}-{number}") for number in range(first, first + count)]


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents, if they do not exist; return the folder.

    Raises:
        OutputError: the folder cannot be created
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror or error}") from error
    return folder


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files of killed processes from the subfolders: no write takes an hour."""
    for part in folder.glob("*/.imprompt-*.part"):
        with contextlib.suppress(OSError):  # another process removed it, or the folder is read-only
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds.

    Whatever happens in the block (an error, a full disk, Ctrl-C), `path` holds either the old content or the
    new one.

    Raises:
        OutputError: the file cannot be written
    """
    check_output(path)
    part = path.with_name(f".imprompt-{secrets.token_hex(6)}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def write_if_changed(path: Path, data: bytes) -> None:
    """Write a file atomically; one with the same content stays untouched, as its folder may be read-only.

    Raises:
        OutputError: the file cannot be written
    """
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with write_atomically(path) as part:
        part.write_bytes(data)
