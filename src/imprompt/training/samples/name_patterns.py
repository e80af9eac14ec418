"""File names with braces and wildcards → files: `shards/{00000..00099}.tar`, `{a,b}.csv`, `s/*.tar`.

A file or folder that exists under the very name is taken as it is: `my [set]/*.tar`, `my {v2}/0.tar`.
"""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from imprompt.errors import DataError
from imprompt.runtime.files import find_file_fault, shorten

MAX_FILES = 100_000
"""Files that braces may name; a thousand tar files hold ten million samples."""

MAX_BRACES = 20
"""Pairs of braces in a pattern."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand_paths(pattern: str) -> list[Path]:
    """Return every file that a pattern names: braces in their order, wildcards sorted by name.

    Raises:
        DataError: a file is missing or is none, no file matches a wild card, or the pattern names more than
            MAX_FILES
    """
    if pattern.count("{") > MAX_BRACES:
        raise DataError(f"data.source {shorten(pattern)!r} has more than {MAX_BRACES} braces")
    names = list(itertools.islice(expand(pattern), MAX_FILES + 1))
    if len(names) > MAX_FILES:
        raise DataError(f"data.source {shorten(pattern)!r} names more than {MAX_FILES:,} files; name fewer")
    paths = [Path(path) for name in names for path in _glob(name)]
    if fault := next(filter(None, map(find_file_fault, paths)), None):
        raise DataError(f"data.source: {fault}")
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"data.source: there is no {missing[0] if missing else pattern}{more}")
    return paths


def expand(pattern: str) -> Iterator[str]:
    """Yield every name that braces stand for; `{08..10}` counts and keeps the number of digits.

    Braces in the names of what exists are no pattern.
    """
    braces = _BRACES.search(pattern)
    if braces is not None:  # only now, as looking for folders takes time
        braces = None if os.path.lexists(pattern) else _BRACES.search(pattern, len(_literal_part(pattern)))
    if braces is None:
        yield pattern
        return
    for choice in _choices(braces[1]):
        yield from expand(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _choices(inside: str) -> Iterable[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        return inside.split(",")
    first, last = int(counted[1]), int(counted[2])
    return (f"{number:0{len(counted[1])}d}" for number in range(first, last + 1))


def _glob(name: str) -> list[str]:
    is_wild = any(character in name for character in "*?[") and not os.path.lexists(name)
    if not is_wild:
        return [name]
    folder = _literal_part(name)
    return sorted(glob.glob(glob.escape(folder) + name[len(folder) :]))


def _literal_part(pattern: str) -> str:
    """Return the longest beginning of a pattern that is an existing folder, with its slash; or ""."""
    ends = [place for place, character in enumerate(pattern, 1) if character == "/"]
    return next((pattern[:end] for end in reversed(ends) if os.path.isdir(pattern[:end])), "")
