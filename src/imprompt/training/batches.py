"""Cached rows as batches, each sample with its own randomness.

All random numbers of a sample (noise, time, dropped conditions, the choice of a reference) come from a
generator seeded by (seed, place in the run), so they depend neither on the batch nor on the process.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imprompt.inputs.choices import Input
from imprompt.training.batch_order import BatchOrder, mix_bits
from imprompt.training.config import LossSettings


@runtime_checkable
class RowSource(Protocol):
    """Encoded samples as the trainer reads them; see `cache`."""

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the tensors of samples."""
        ...

    def caption(self, number: int) -> str:
        """Return the caption of a sample."""
        ...


class Draws(NamedTuple):
    """The random numbers of a batch.

    Attributes:
        noise: ε
        latent_noise: noise with which the latents are sampled from their distribution
        offset: noise offset, one number per channel
        uniform, normal: draws from which times are computed
        no_image, no_text: which conditions are dropped
    """

    noise: Float[Tensor, "batch channels height width"]
    latent_noise: Float[Tensor, "batch channels height width"]
    offset: Float[Tensor, "batch channels 1 1"]
    uniform: Float[Tensor, " batch"]
    normal: Float[Tensor, " batch"]
    no_image: Bool[Tensor, " batch"]
    no_text: Bool[Tensor, " batch"]


class PromptBatch(NamedTuple):
    """Samples of one shape, as the objective reads them.

    Attributes:
        moments: mean and log-variance of the latents
        text: text embeddings, pooled ones; empty if captions are encoded at every step
        captions: the texts
        inputs: inputs of the projection, one reference each, "batch 1 ..."
        size_condition: size conditions of SDXL, or None
        mask: weights of the loss by area, or None
    """

    moments: Float[Tensor, "batch twochannels height width"]
    text: dict[str, Tensor]
    captions: list[str]
    inputs: dict[str, Tensor]
    size_condition: Int[Tensor, "batch 6"] | None
    mask: Float[Tensor, "batch 1 height width"] | None
    draws: Draws


INPUTS: tuple[Input, ...] = ("image_embedding", "image_features", "image_pixels", "face_embedding")
TEXTS = ("text_embeddings", "pooled_text")


class PromptBatches(Dataset[list[PromptBatch]]):
    """The batches of every step, split into passes, for one of several processes.

    Args:
        rows: the cache
        order: the rows of each step
        loss: the probabilities of dropping conditions
        passes: number of passes of each process
        rank, processes: index and number of processes, which share a batch equally
    """

    def __init__(
        self,
        rows: RowSource,
        order: BatchOrder,
        loss: LossSettings,
        *,
        passes: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows, self.order, self.loss = rows, order, loss
        self.passes, self.rank, self.processes = passes, rank, processes

    def __getitem__(self, step: int) -> list[PromptBatch]:
        """Return the passes of one step."""
        every = list(enumerate(self.order.batch(step), start=step * self.order.batch_size))
        mine = every[
            len(every) * self.rank // self.processes : len(every) * (self.rank + 1) // self.processes
        ]
        size = len(mine) // self.passes
        return [self.batch(mine[i : i + size]) for i in range(0, len(mine), size)]

    def batch(self, samples: Sequence[tuple[int, int]]) -> PromptBatch:
        """Return a batch of samples given as (place in the run, row number)."""
        rows = self.rows.rows([row for _, row in samples])
        generators = [
            torch.Generator().manual_seed(mix_bits(self.order.seed, place) >> 1) for place, _ in samples
        ]
        shape = rows[0]["moments"].shape
        draws = [draw_randomness(g, (shape[0] // 2, *shape[1:]), self.loss) for g in generators]
        return collate(
            rows,
            [self.rows.caption(row) for _, row in samples],
            Draws(*(torch.stack(values) for values in zip(*draws, strict=True))),
            [int(torch.randint(1 << 30, (), generator=generator)) for generator in generators],
        )


def draw_randomness(generator: torch.Generator, shape: Sequence[int], loss: LossSettings) -> Draws:
    """Draw everything random of one sample; the fields have no batch axis here."""
    noise, latent_noise = (torch.randn(*shape, generator=generator) for _ in range(2))
    offset, normal = torch.randn(shape[0], 1, 1, generator=generator), torch.randn((), generator=generator)
    uniform, chance = torch.rand(2, generator=generator)
    both = chance < loss.both_drop
    no_image = both | (chance < loss.both_drop + loss.image_drop)
    no_text = both | (chance >= 1 - loss.text_drop)
    return Draws(noise, latent_noise, offset, uniform, normal, no_image, no_text)


def collate(
    rows: Sequence[dict[str, Tensor]], captions: list[str], draws: Draws, choices: Sequence[int]
) -> PromptBatch:
    """Stack rows into one batch; `choices` modulo their number picks one of several references."""

    def stack(name: str) -> Tensor | None:
        return torch.stack([row[name] for row in rows]) if name in rows[0] else None

    def choose_reference(name: str) -> Tensor:
        return torch.stack(
            [row[name][None, c % len(row[name])] for row, c in zip(rows, choices, strict=True)]
        )

    return PromptBatch(
        moments=torch.stack([row["moments"].float() for row in rows]),
        text={name: value for name in TEXTS if (value := stack(name)) is not None},
        captions=captions,
        inputs={name: choose_reference(name) for name in INPUTS if name in rows[0]},
        size_condition=stack("size_condition"),
        mask=_masks(rows),
        draws=draws,
    )


def _masks(rows: Sequence[dict[str, Tensor]]) -> Tensor | None:
    """Stack the masks of a batch; the loss covers all of a sample without one."""
    if not any("mask" in row for row in rows):
        return None
    everywhere = torch.ones(1, *rows[0]["moments"].shape[1:])
    return torch.stack([row.get("mask", everywhere).float() for row in rows])


def make_loader(
    batches: PromptBatches, steps: range, *, workers: int, pin_memory: bool
) -> DataLoader[list[PromptBatch]]:
    """Return a loader that yields the batches of these steps in order, read ahead by workers."""
    return DataLoader(
        batches,
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def make_fixed_batch(rows: RowSource, numbers: Sequence[int] | np.ndarray, seed: int = 0) -> PromptBatch:
    """Return a batch for evaluation: the same samples and noise every time, nothing dropped."""
    no_drops = LossSettings(image_drop=0, text_drop=0, both_drop=0)
    order = BatchOrder({"all": numbers}, len(numbers), seed)
    return PromptBatches(rows, order, no_drops).batch([(-1 - i, int(row)) for i, row in enumerate(numbers)])
