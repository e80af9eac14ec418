"""Rows of a parametrized test of which only some are tested whenever tests run."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_slow(values: Iterable[Any], *, quick: Collection[Any]) -> list[Any]:
    """Return the values as parameters, all slow tests but the quick ones; a tuple is one row of several."""
    rows = [one if isinstance(one, tuple) else (one,) for one in values]
    wanted = [one if isinstance(one, tuple) else (one,) for one in quick]
    return [pytest.param(*row, marks=() if row in wanted else pytest.mark.slow) for row in rows]
