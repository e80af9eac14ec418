"""Unusable samples: left out, each written down once; too many of them are an error."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from imprompt.errors import DataError
from imprompt.training.integrity import write_bytes
from imprompt.training.samples import Unreadable


def too_many(skipped: int, total: int) -> bool:
    """Whether more than 1 % of all samples are unusable; one is always allowed."""
    return skipped > max(1, total // 100)


def refusal(skipped: Sequence[Unreadable], total: int, source: str, path: Path) -> DataError:
    """Return the error for too many unusable samples; `path` is the file that lists them."""
    return DataError(
        f"{len(skipped)} of the {total} samples of {source} cannot be used, more than 1 %; the first: "
        f"{_said(skipped[0])}; all that were found are in {path}"
    )


def none_left(one: Unreadable, source: str) -> DataError:
    """Return the error for a source without a usable sample, of which `one` is an example."""
    return DataError(f"none of the samples of {source} can be used; {_said(one)}")


def _said(one: Unreadable) -> str:
    return f"{one.name}: {one.reason}"


def write_skipped(path: Path, skipped: Sequence[Unreadable]) -> None:
    """Write samples as JSON lines in place of the file's former content.

    Raises:
        OutputError: it cannot be written
    """
    lines = (json.dumps(asdict(one), ensure_ascii=False) for one in skipped)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
