"""The training data: characters drawn once into one file, with a file of their attributes.

    pictures.npy      uint8, characters × 128 × 128 × RGB
    characters.jsonl  one character a line, in the same order

The folder `people` beside the splits holds people in several views (`views`), with the same files.

Drawing k is a pure function of (seed, split, k). A file that is being written has another name, and a split
that exists is not drawn again.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from imprompt.errors import ConfigError
from imprompt.lab.making.characters import Character, Split, sample_character
from imprompt.lab.making.drawing import SIZE, draw_many
from imprompt.lab.making.views import VIEWS, draw_people

PEOPLE = "people"
"""Name of the folder of people in several views."""

BLOCK = 240
"""The number of pictures that one task draws; a multiple of the views of a person."""


def build_data(folder: Path, counts: dict[Split, int], *, size: int = SIZE, seed: int = 0) -> None:
    """Draw `counts` characters of each split into `folder`/<split>; an existing split stays.

    Raises:
        MissingExtra: the drawing libraries (`imprompt[draw]`) are not installed
    """
    for split, count in counts.items():
        if not (folder / split / "pictures.npy").exists():
            draw_split(folder / split, split, count, draw_block, size=size, seed=seed)


def build_people(folder: Path, counts: dict[Split, int], *, size: int = SIZE, seed: int = 0) -> None:
    """Draw `counts` people of each split, each in several views, into `folder`/people/<split>.

    Raises:
        MissingExtra: as `build_data`
    """
    for split, count in counts.items():
        place = folder / PEOPLE / split
        if not (place / "pictures.npy").exists():
            draw_split(place, split, count * VIEWS, draw_people, size=size, seed=seed)


def draw_split(
    folder: Path, split: Split, count: int, draw: Callable[[Any], Any], *, size: int, seed: int
) -> None:
    """Draw one split on all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "pictures.partial.npy"
    shape = (count, size, size, 3)
    pictures = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    tasks = [(seed, split, start, min(BLOCK, count - start), size) for start in range(0, count, BLOCK)]
    with ProcessPoolExecutor() as pool, (folder / "characters.jsonl").open("w", encoding="utf-8") as lines:
        blocks = zip(tasks, pool.map(draw, tasks), strict=True)
        for (_, _, start, _, _), (characters, drawn) in track(blocks, description=split, total=len(tasks)):
            pictures[start : start + len(drawn)] = drawn
            lines.writelines(json.dumps(character.to_json()) + "\n" for character in characters)
    pictures.flush()
    os.replace(partial, folder / "pictures.npy")


def draw_block(task: tuple[int, Split, int, int, int]) -> tuple[list[Character], np.ndarray]:
    """Sample and draw consecutive characters."""
    seed, split, start, count, size = task
    characters = list(sample_characters(seed, split, range(start, start + count)))
    return characters, draw_many(characters, size)


def sample_characters(seed: int, split: Split, places: Sequence[int]) -> Iterator[Character]:
    """Yield the characters at these places of a split."""
    for place in places:
        yield sample_character(random.Random(f"{seed}/{split}/{place}"), split)


class Drawings:
    """A split of the data on disk.

    Attributes:
        pictures: uint8, (characters, size, size, 3), read from disk as needed
        characters: in the same order

    Raises:
        ConfigError: the split has not been drawn
    """

    def __init__(self, folder: Path, split: Split) -> None:
        path = folder / split / "pictures.npy"
        if not path.exists():
            raise ConfigError(
                f"there are no pictures in {path.parent}: draw them with `imprompt mini build-data`"
            )
        self.pictures: np.ndarray = np.load(path, mmap_mode="r")
        with (path.parent / "characters.jsonl").open(encoding="utf-8") as lines:
            self.characters = [Character(**json.loads(line)) for line in lines]

    def __len__(self) -> int:
        return len(self.characters)
