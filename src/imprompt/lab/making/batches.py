"""Which drawings a step sees: a pure function of (seed, step), so nothing needs to be saved or restored."""

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
    """A step's rows of the data, and its randomness, seeded by `seed`."""

    rows: list[int]
    seed: int

    def generator(self, device: torch.device | str = "cpu") -> Generator:
        """The step's randomness for tensors, from its beginning."""
        return Generator(device).manual_seed(self.seed)

    def random(self) -> random.Random:
        """The step's randomness for words, from its beginning."""
        return random.Random(self.seed)


def batches(count: int, batch_size: int, seed: int, steps: range) -> Iterator[list[DrawingBatch]]:
    """The batches of these steps over `count` drawings, one a step."""
    order = BatchOrder({"all": range(count)}, batch_size, seed)
    for step in steps:
        yield [DrawingBatch(order.batch(step), seed * 1_000_003 + step)]


def to_pixels(pictures: UInt8[np.ndarray, "batch size size 3"]) -> Float[Tensor, "batch 3 size size"]:
    """Pictures from 0 to 255 as pixels in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
