"""Samples that cannot be used: left out, written down once each, and too many of them an error."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from imprompt.errors import DataError
from imprompt.training.integrity import write_bytes
from imprompt.training.samples import Unreadable


def too_many(skipped: int, total: int) -> bool:
    """Whether more than 1 % of all samples cannot be used; one may always be, in however small a set."""
    return skipped > max(1, total // 100)


def refusal(skipped: Sequence[Unreadable], total: int, source: str, path: Path) -> DataError:
    """What to say when too many cannot be used; `path` is where they are written down."""
    return DataError(
        f"{len(skipped)} of the {total} samples of {source} cannot be used, more than 1 %; the first: "
        f"{_said(skipped[0])}; all that were found are in {path}"
    )


def none_left(one: Unreadable, source: str) -> DataError:
    """What to say when not a single sample can be used, `one` for instance."""
    return DataError(f"none of the samples of {source} can be used; {_said(one)}")


def _said(one: Unreadable) -> str:
    return f"{one.name}: {one.reason}"


def write_skipped(path: Path, skipped: Sequence[Unreadable]) -> None:
    """Write samples down, one JSON object a line, in place of what the file held.

    Raises:
        OutputError: it cannot be written
    """
    lines = (json.dumps(asdict(one), ensure_ascii=False) for one in skipped)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
