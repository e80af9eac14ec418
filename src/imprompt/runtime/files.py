"""Checks of the files that a user names, before anything is opened.

Reading a named pipe or a device would never end, and a name that the file system cannot hold would fail late.
"""

import os
import stat
from pathlib import Path

MAX_NAME_BYTES = 255
"""The longest file name of common file systems, in bytes."""

MAX_PATH_BYTES = 4095
"""The longest path of Linux, in bytes."""

MAX_HEADER_BYTES = 8 * 1024 * 1024
"""The largest header (names and shapes) of a safetensors file, in bytes; 10,000 tensors take 2 MB."""

_MESSAGE_LENGTH = 200
"""Number of characters of a long value in a message."""

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def shorten(text: str) -> str:
    """Shorten a value for a message to its beginning and its end."""
    return (
        text
        if len(text) <= _MESSAGE_LENGTH
        else f"{text[: _MESSAGE_LENGTH // 2]}...{text[-_MESSAGE_LENGTH // 2 :]}"
    )


def find_name_fault(name: str | os.PathLike[str]) -> str | None:
    """Return why no file can have this name.

    Returns:
        the reason and the remedy, a clause about "its name"; None for a possible name
    """
    text = os.fspath(name)
    if "\0" in text:
        return "its name holds a NUL character, which no file name may contain; remove it"
    try:
        longest = max(len(os.fsencode(part)) for part in text.split(os.sep))
    except UnicodeEncodeError:
        return "its name holds half of a surrogate pair, which is no character; remove it"
    if longest > MAX_NAME_BYTES:
        return f"its name has {longest} bytes; the limit is {MAX_NAME_BYTES}; choose a shorter one"
    if (size := len(os.fsencode(text))) > MAX_PATH_BYTES:
        return f"its path has {size} bytes; the limit is {MAX_PATH_BYTES}; choose a shorter one"
    return None


def find_file_fault(path: str | os.PathLike[str]) -> str | None:
    """Return why a path cannot be read as a file; the caller reports a missing file and a folder.

    Returns:
        a sentence that names the path; None for a regular file, a folder, or a missing path
    """
    name = shorten(os.fspath(path))
    if fault := find_name_fault(path):
        return f"{name} cannot be read: {fault}"
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    kind = next((word for is_kind, word in _KINDS if is_kind(mode)), None)
    return f"{name} cannot be read: it is {kind}, not a file; copy its content into a file" if kind else None


def find_header_fault(path: Path) -> str | None:
    """Return why the header of an existing safetensors file is refused.

    Returns:
        a sentence that names the file and MAX_HEADER_BYTES; None for a shorter header, and for other files
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not MAX_HEADER_BYTES < length <= path.stat().st_size:
        return None
    return f"{path} has a header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}"


def resolve_in_cache(folder: str) -> Path:
    """Return the folder of a recipe: unchanged if it begins with `/` or `.`, else a folder in the cache."""
    if folder.startswith(("/", ".")):
        return Path(folder)
    cache = os.environ.get("IMPROMPT_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "imprompt") / folder
