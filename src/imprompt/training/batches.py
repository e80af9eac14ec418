"""The cache's rows as batches, each with its own randomness.

Everything random of a sample (its noise, its time, what is dropped, which of several references) comes from
a generator seeded by (seed, its place in the run), so it depends neither on the batch nor on the process.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imprompt.inputs.encoder import Input
from imprompt.training.config import LossSettings
from imprompt.training.order import Order, mixed


@runtime_checkable
class Rows(Protocol):
    """What the trainer reads: samples as frozen models see them (see `cache`)."""

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """The tensors of samples."""
        ...

    def caption(self, number: int) -> str:
        """Its caption."""
        ...


class Draws(NamedTuple):
    """The randomness of a batch.

    Attributes:
        noise: ε
        latent_noise: with which the latents are drawn from their distribution
        offset: of the noise, one number for each channel
        uniform, normal: from which times are made
        no_image, no_text: what is dropped
    """

    noise: Float[Tensor, "batch channels height width"]
    latent_noise: Float[Tensor, "batch channels height width"]
    offset: Float[Tensor, "batch channels 1 1"]
    uniform: Float[Tensor, " batch"]
    normal: Float[Tensor, " batch"]
    no_image: Bool[Tensor, " batch"]
    no_text: Bool[Tensor, " batch"]


class PromptBatch(NamedTuple):
    """Samples of one shape, as the objective takes them.

    Attributes:
        moments: mean and log-variance of the latents
        text: text embeddings, pooled ones; empty if captions are encoded at every step
        captions: the texts
        inputs: what the projection takes, one reference each, "batch 1 ..."
        size_condition: of SDXL, or None
        mask: where the loss looks, or None
    """

    moments: Float[Tensor, "batch twochannels height width"]
    text: dict[str, Tensor]
    captions: list[str]
    inputs: dict[str, Tensor]
    size_condition: Int[Tensor, "batch 6"] | None
    mask: Float[Tensor, "batch 1 height width"] | None
    draws: Draws


INPUTS: tuple[Input, ...] = ("image_embedding", "image_features", "face_embedding")
TEXTS = ("text_embeddings", "pooled_text")


class PromptBatches(Dataset[list[PromptBatch]]):
    """The passes of every step, for one of several processes.

    Args:
        rows: the cache
        order: which rows a step sees
        loss: how much is dropped
        passes: into how many each process cuts its share
        rank, processes: which process this is, of how many; the batch is to be shared equally
    """

    def __init__(
        self,
        rows: Rows,
        order: Order,
        loss: LossSettings,
        *,
        passes: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows, self.order, self.loss = rows, order, loss
        self.passes, self.rank, self.processes = passes, rank, processes

    def __getitem__(self, step: int) -> list[PromptBatch]:
        """The passes of one step."""
        every = list(enumerate(self.order.batch(step), start=step * self.order.batch_size))
        mine = every[
            len(every) * self.rank // self.processes : len(every) * (self.rank + 1) // self.processes
        ]
        size = len(mine) // self.passes
        return [self.batch(mine[i : i + size]) for i in range(0, len(mine), size)]

    def batch(self, placed: Sequence[tuple[int, int]]) -> PromptBatch:
        """Samples given as (place in the run, row number)."""
        rows = self.rows.rows([row for _, row in placed])
        generators = [
            torch.Generator().manual_seed(mixed(self.order.seed, place) >> 1) for place, _ in placed
        ]
        shape = rows[0]["moments"].shape
        draws = [draw(g, (shape[0] // 2, *shape[1:]), self.loss) for g in generators]
        return collated(
            rows,
            [self.rows.caption(row) for _, row in placed],
            Draws(*(torch.stack(values) for values in zip(*draws, strict=True))),
            [int(torch.randint(1 << 30, (), generator=generator)) for generator in generators],
        )


def draw(generator: torch.Generator, shape: Sequence[int], loss: LossSettings) -> Draws:
    """Draw everything random of one sample; the fields have no batch axis here."""
    noise, latent_noise = (torch.randn(*shape, generator=generator) for _ in range(2))
    offset, normal = torch.randn(shape[0], 1, 1, generator=generator), torch.randn((), generator=generator)
    uniform, chance = torch.rand(2, generator=generator)
    both = chance < loss.both_drop
    no_image = both | (chance < loss.both_drop + loss.image_drop)
    no_text = both | (chance >= 1 - loss.text_drop)
    return Draws(noise, latent_noise, offset, uniform, normal, no_image, no_text)


def collated(
    rows: Sequence[dict[str, Tensor]], captions: list[str], draws: Draws, choices: Sequence[int]
) -> PromptBatch:
    """Rows as one batch; of several references, `choices` modulo their number says which is taken."""

    def stacked(name: str) -> Tensor | None:
        return torch.stack([row[name] for row in rows]) if name in rows[0] else None

    def chosen(name: str) -> Tensor:
        return torch.stack(
            [row[name][None, c % len(row[name])] for row, c in zip(rows, choices, strict=True)]
        )

    return PromptBatch(
        moments=torch.stack([row["moments"].float() for row in rows]),
        text={name: value for name in TEXTS if (value := stacked(name)) is not None},
        captions=captions,
        inputs={name: chosen(name) for name in INPUTS if name in rows[0]},
        size_condition=stacked("size_condition"),
        mask=_masks(rows),
        draws=draws,
    )


def _masks(rows: Sequence[dict[str, Tensor]]) -> Tensor | None:
    """Masks of a batch; a sample without one is looked at everywhere."""
    if not any("mask" in row for row in rows):
        return None
    everywhere = torch.ones(1, *rows[0]["moments"].shape[1:])
    return torch.stack([row.get("mask", everywhere).float() for row in rows])


def loader(
    batches: PromptBatches, steps: range, *, workers: int, pin_memory: bool
) -> DataLoader[list[PromptBatch]]:
    """Batches of these steps in order, read ahead by workers."""
    return DataLoader(
        batches,
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def fixed_batch(rows: Rows, numbers: Sequence[int] | np.ndarray, seed: int = 0) -> PromptBatch:
    """The same samples with the same noise every time, nothing dropped: to measure with."""
    nothing = LossSettings(image_drop=0, text_drop=0, both_drop=0)
    order = Order({"all": numbers}, len(numbers), seed)
    return PromptBatches(rows, order, nothing).batch([(-1 - i, int(row)) for i, row in enumerate(numbers)])
