"""The list of images to be generated; each is a pure function of its task and of the settings."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One image.

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
"""Tasks that are generated in one call; they differ in key and seed only."""


def group_tasks(tasks: Sequence[Task], size: int) -> list[Group]:
    """Group neighbors that differ in key and seed only, at most `size` in a group.

    Groups do not depend on which images exist. A group that is half done is generated again as a whole,
    because an image depends on the size of its batch (the order of sums in matrix products).
    """
    groups: list[Group] = []
    for _, same in itertools.groupby(tasks, lambda task: (task.reference, task.text, task.scale)):
        row = list(same)
        groups += [tuple(row[start : start + size]) for start in range(0, len(row), size)]
    return groups


def derive_seed(*names: str | int) -> int:
    """Return a seed of 63 bits that follows from names alone, for instance ("coco", image id, k).

    It does not depend on the order of tasks, so the k-th image of a reference is the same in every subset. It
    does not depend on the method, so all methods with latents of one shape begin with the same noise.
    """
    text = "/".join(map(str, names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
