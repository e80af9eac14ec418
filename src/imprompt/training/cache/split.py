"""Rows to train on and rows to hold out, decided by the content of the images alone.

Images are sorted by their SHA-256, and the first ones are held out. So the order of the data does not matter,
and nearly the same images are held out when data are added. An image that occurs several times, with
different captions for instance, is on one side only: if it is held out, its first row is evaluated and the
others are left out.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from imprompt.errors import DataError
from imprompt.training.config import DataSettings

FEWEST = 2
"""The least number of images among which references can be shuffled."""


class Split(NamedTuple):
    """Row numbers, ascending."""

    train: Int[np.ndarray, " train"]
    held_out: Int[np.ndarray, " held_out"]


def split_rows(pictures: UInt8[np.ndarray, "rows 32"], first: int, data: DataSettings) -> Split:
    """Split rows as configured; the `first` ones are of `data.source`, the others of `data.held_out`.

    Raises:
        DataError: too few different pictures
    """
    if isinstance(data.held_out, str):
        return split_between(pictures[:first], pictures[first:], data.held_out_most)
    return split_by_share(pictures, data.held_out, data.held_out_most)


def split_by_share(pictures: UInt8[np.ndarray, "rows 32"], share: float | int, most: int) -> Split:
    """Hold out a share of the images, rounded, but no fewer than 2 and no more than `most`.

    Args:
        pictures: SHA-256 of each row's picture
        share: 0–1
        most: 2 or more

    Raises:
        DataError: fewer than 3 different pictures
    """
    names, first, number = np.unique(_names(pictures), return_index=True, return_inverse=True)
    if len(names) <= FEWEST:
        raise DataError(
            f"there are only {len(names)} different pictures that can be used; {FEWEST} are held out, "
            "so at least 3 are needed"
        )
    count = min(max(round(share * len(names)), FEWEST), most, len(names) - 1)
    return Split(np.flatnonzero(number >= count), np.sort(first[:count]))


def split_between(
    train: UInt8[np.ndarray, "rows 32"], held_out: UInt8[np.ndarray, "others 32"], most: int
) -> Split:
    """Hold out rows of another source, which follow the others, and do not train on its images.

    Raises:
        DataError: fewer than 2 different pictures to look at, or none to train on
    """
    names, first = np.unique(_names(held_out), return_index=True)
    remaining = np.flatnonzero(~np.isin(_names(train), names))
    if len(names) < FEWEST or not len(remaining):
        raise DataError(
            f"data.held_out has {len(names)} different pictures, and {len(remaining)} samples of data.source "
            f"have others; at least {FEWEST} and 1 are needed"
        )
    return Split(remaining, len(train) + np.sort(first[:most]))


def _names(pictures: np.ndarray) -> np.ndarray:
    """Return digests as values that sort like bytes."""
    return np.ascontiguousarray(pictures).view("V32").reshape(-1)
