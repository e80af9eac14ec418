"""Items of a large set that cannot be used: a few are left out and written down, too many are an error."""

import json
from collections.abc import Iterable
from pathlib import Path

from imprompt.runtime.output import write_if_changed


def too_many(faults: int, total: int) -> bool:
    """Whether more than 1 % of all items cannot be used; one is always allowed."""
    return faults > max(1, total // 100)


def write_faults(path: Path, faults: Iterable[tuple[str, str]]) -> None:
    """Write names and reasons as JSON lines in place of the file's former content.

    Raises:
        OutputError: the file cannot be written
    """
    lines = (json.dumps({"name": name, "reason": why}, ensure_ascii=False) + "\n" for name, why in faults)
    write_if_changed(path, "".join(lines).encode("utf-8", "backslashreplace"))
