"""What is to be drawn: a fixed list of pictures, each a pure function of its task and of the settings."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One picture.

    Attributes:
        key: its name in the folder, unique
        reference: path of the image prompt
        text: the prompt
        scale: λ
        seed: of its noise
    """

    key: str
    reference: str
    text: str
    scale: float | int
    seed: int


Group = tuple[Task, ...]
"""Tasks that are drawn in one call: they differ in key and seed only."""


def grouped(tasks: Sequence[Task], size: int) -> list[Group]:
    """Neighbours that differ in key and seed only, at most `size` in a group.

    Groups do not depend on which pictures are done: a group that is half done is drawn again as a whole, for
    a picture follows from the size of its batch (the order of sums in matrix products).
    """
    groups: list[Group] = []
    for _, same in itertools.groupby(tasks, lambda task: (task.reference, task.text, task.scale)):
        row = list(same)
        groups += [tuple(row[start : start + size]) for start in range(0, len(row), size)]
    return groups


def seed_of(*names: str | int) -> int:
    """A seed of 63 bits that follows from names alone: ("coco", image id, k), for instance.

    It knows nothing of the order of tasks, so that the k-th picture of an image is the same in every subset;
    and nothing of the method, so that all methods with latents of one shape begin with the same noise.
    """
    text = "/".join(map(str, names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
