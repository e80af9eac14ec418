"""The drawings of each step, a pure function of (seed, step), so that nothing must be saved and restored."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from imprompt.training.batch_order import BatchOrder


@dataclass(frozen=True)
class DrawingBatch:
    """A step's rows of the data, and the seed of its random numbers."""

    rows: list[int]
    seed: int

    def make_generator(self, device: torch.device | str = "cpu") -> Generator:
        """Return the step's random generator for tensors, at its beginning."""
        return Generator(device).manual_seed(self.seed)

    def make_random(self) -> random.Random:
        """Return the step's random generator for words, at its beginning."""
        return random.Random(self.seed)


def iterate_batches(count: int, batch_size: int, seed: int, steps: range) -> Iterator[list[DrawingBatch]]:
    """Yield the batches of these steps over `count` drawings, one for each step."""
    order = BatchOrder({"all": range(count)}, batch_size, seed)
    for step in steps:
        yield [DrawingBatch(order.batch(step), seed * 1_000_003 + step)]


def to_pixels(pictures: UInt8[np.ndarray, "batch size size 3"]) -> Float[Tensor, "batch 3 size size"]:
    """Convert pictures from 0 to 255 to pixels in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
