"""Find the files from which a picture was made, although the picture holds no absolute path.

A picture stores a relative path and a hash of each file. A file elsewhere on the disk is remembered on this
machine only: the cache holds its absolute path in a file that is named by the hash. So a picture that is
passed on reveals no folder, and `--like` still finds the file on the machine that made the picture.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from imprompt.errors import OutputError
from imprompt.runtime.files import find_file_fault, resolve_in_cache
from imprompt.runtime.output import make_folder, write_if_changed

_FOLDER = "references"
_DIGITS = 32
"""Hexadecimal digits of a hash: 128 bits do not collide by chance."""


def hash_file(path: str | os.PathLike[str]) -> str | None:
    """Return a hash of a file's content, 32 hexadecimal digits of SHA-256; None if it cannot be read."""
    if find_file_fault(path):
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
    except OSError:
        return None


def remember_files(files: Iterable[str]) -> None:
    """Remember on this machine where files outside the working directory are.

    A cache that cannot be written is no error: `--like` then asks for the files.
    """
    for file in files:
        path = Path(os.path.abspath(file))
        if path.is_relative_to(Path.cwd()) or (digest := hash_file(path)) is None:
            continue
        with contextlib.suppress(OutputError):
            folder = make_folder(resolve_in_cache(_FOLDER))
            write_if_changed(folder / digest, os.fsencode(path))


def locate_file(picture: Path, file: str, digest: str | None) -> str:
    """Return where a file is from which a picture was made.

    It is looked for in the picture's folder, in the working directory, and where it was when the picture was
    made. A file of the same content is preferred to one that only has the same name.

    Args:
        picture: path of the picture
        file: the path that the picture stores
        digest: the hash that it stores; None for early pictures

    Returns:
        a path; `file` itself if there is no such file
    """
    candidates = [picture.parent / file, Path(file), *_recall(digest)]
    existing = [str(path) for path in candidates if path.exists()]
    same = (path for path in existing if digest is not None and hash_file(path) == digest)
    return next(same, existing[0] if existing else file)


def _recall(digest: str | None) -> list[Path]:
    """Return where a file with this hash was, if this machine remembers it."""
    if digest is None or len(digest) != _DIGITS or not digest.isalnum():  # a picture may hold anything
        return []
    try:
        return [Path(os.fsdecode((resolve_in_cache(_FOLDER) / digest).read_bytes()))]
    except (OSError, ValueError):
        return []
