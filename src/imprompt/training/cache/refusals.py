"""Errors for data in which too many samples, or all, are unusable."""

from collections.abc import Sequence
from pathlib import Path

from imprompt.errors import DataError
from imprompt.training.samples import Unreadable


def build_refusal(skipped: Sequence[Unreadable], total: int, source: str, path: Path) -> DataError:
    """Return the error for too many unusable samples; `path` is the file that lists them."""
    first = skipped[0]
    return DataError(
        f"{len(skipped)} of the {total} samples of {source} cannot be used, more than 1 %; the first: "
        f"{first.name}: {first.reason}; all that were found are in {path}"
    )


def build_none_usable(one: Unreadable, source: str) -> DataError:
    """Return the error for a source without a usable sample, of which `one` is an example."""
    return DataError(f"none of the samples of {source} can be used; {one.name}: {one.reason}")
