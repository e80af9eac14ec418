"""Files that a user names: what is wrong with a name, or with what stands there, before anything is opened.

A named pipe or a device would be read for ever; a name that the file system cannot hold fails somewhere deep.
"""

import os
import stat
from pathlib import Path

MAX_NAME_BYTES = 255
"""The longest file name, in bytes, that common file systems hold."""

MAX_PATH_BYTES = 4095
"""The longest path, in bytes, that Linux takes."""

MAX_HEADER_BYTES = 8 * 1024 * 1024
"""Of a safetensors file: names and shapes; 10,000 of them have 2 MB."""

_SHOWN = 200
"""Characters of a long value that a message shows."""

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def shorten(text: str) -> str:
    """A value for a message: as it is, or its beginning and its end."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def name_fault(name: str | os.PathLike[str]) -> str | None:
    """Say why no file can have this name.

    Returns:
        the reason and the remedy, a phrase about "its name"; None for a name that a file may have
    """
    text = os.fspath(name)
    if "\0" in text:
        return "its name holds a NUL character, which no file name can; leave it out"
    try:
        longest = max(len(os.fsencode(part)) for part in text.split(os.sep))
    except UnicodeEncodeError:
        return "its name holds half of a surrogate pair, which is no character; leave it out"
    if longest > MAX_NAME_BYTES:
        return f"its name has {longest} bytes and may have {MAX_NAME_BYTES}; choose a shorter one"
    if (size := len(os.fsencode(text))) > MAX_PATH_BYTES:
        return f"its path has {size} bytes and may have {MAX_PATH_BYTES}; choose a shorter one"
    return None


def file_fault(path: str | os.PathLike[str]) -> str | None:
    """Say why a path cannot be read as a file; that it is missing or a folder is left to who opens it.

    Returns:
        a sentence that names the path; None for a regular file, a folder, or nothing
    """
    name = shorten(os.fspath(path))
    if fault := name_fault(path):
        return f"{name} cannot be read: {fault}"
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    kind = next((word for is_kind, word in _KINDS if is_kind(mode)), None)
    return f"{name} cannot be read: it is {kind}, not a file; copy what it gives into one" if kind else None


def header_fault(path: Path) -> str | None:
    """Say why the header of a safetensors file, which is there, is not to be read.

    Returns:
        a sentence that names the file and MAX_HEADER_BYTES; None for a shorter one, and for other files
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not MAX_HEADER_BYTES < length <= path.stat().st_size:
        return None
    return f"{path} has a header of {length:,} bytes; such a file has at most {MAX_HEADER_BYTES:,}"
