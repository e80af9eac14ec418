"""What objectives on cached latents share: the conditions of a batch, held-out samples, precision."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.runtime.machine import Precision
from imprompt.training.activations import checkpoint_blocks, compile_blocks
from imprompt.training.batches import Draws, PromptBatch, make_fixed_batch
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.noising import Noising
from imprompt.training.objectives.objective import Objective

OWN = "own"
"""The prompt that means a sample's own caption."""

MOST_UNFUSED = 1024
"""Largest number of latent pixels for which a CPU uses unfused attention, which holds all attention
weights."""


class LatentObjective(Objective):
    """An objective on cached latents, texts and references of a frozen base.

    Args:
        config: the run
        base: the frozen models
        samples: the cached samples

    Attributes:
        precision: format of the U-Net's matrix products on a CPU; what is trained is float32
        steps_taken: returns the run's step
    """

    def __init__(self, config: TrainingConfig, base: FrozenBase, samples: Any) -> None:
        super().__init__()
        self.config, self.base, self.samples = config, base, samples
        self.precision: Precision = "fp32"
        self.steps_taken: Callable[[], int] = lambda: 0
        self.noising = Noising(base.scheduler, config.loss, base.device)
        self.blanks = {name: blank.to(base.device) for name, blank in samples.blanks.items()}
        self.empty_text = {name: value[0] for name, value in base.encode_text([""]).items()}
        if config.training.gradient_checkpointing:
            checkpoint_blocks(base.denoiser, config.training.checkpoint_every)
        if config.training.compile:
            compile_blocks(base.denoiser)

    def fast_products(
        self, noisy_latents: Float[Tensor, "batch channels height width"]
    ) -> contextlib.AbstractContextManager[Any]:
        """Return how a CPU denoises: in `precision`, without fused attention, slow there.

        On GPUs the frozen models have their format, and fused attention is the fast one.
        """
        context = contextlib.ExitStack()
        if self.base.device.type != "cpu":
            return context
        # A checkpointed block is computed once more outside of this, where it must be computed the same way.
        recomputes = self.config.training.gradient_checkpointing
        if noisy_latents.shape[-2:].numel() <= MOST_UNFUSED and not recomputes:
            context.enter_context(sdpa_kernel(SDPBackend.MATH))
        if self.precision == "bf16":
            context.enter_context(torch.autocast("cpu", torch.bfloat16))
        return context

    def text_of(self, batch: PromptBatch, dropped: Tensor) -> dict[str, Tensor]:
        """Return the text embeddings of a batch, replaced by those of "" where text is dropped."""
        texts = batch.text or self.base.encode_text(batch.captions)
        return {
            name: torch.where(per_sample(dropped, value), self.empty_text[name], value).to(self.base.dtype)
            for name, value in ((name, value.to(self.empty_text[name])) for name, value in texts.items())
        }

    def inputs_of(self, batch: PromptBatch, dropped: Tensor) -> dict[Input, Tensor]:
        """Return the projection's inputs in float32, blank where the image is dropped."""
        inputs: dict[Input, Tensor] = {}
        for name, blank in self.blanks.items():
            value = batch.inputs[name].float()
            inputs[name] = torch.where(per_sample(dropped, value), blank.float(), value)
        return inputs

    def read_held_out_batches(self) -> list[PromptBatch]:
        """Return the held-out samples with fixed noise, in batches of one shape."""
        size = max(2, self.config.training.batch_size // self.config.training.passes)
        shapes: dict[tuple[int, int], list[int]] = {}
        for row in self.samples.held_out.tolist():
            shapes.setdefault(self.samples.bucket(row), []).append(row)
        cut = [rows[i : i + size] for rows in shapes.values() for i in range(0, len(rows), size)]
        return [make_fixed_batch(self.samples, rows) for rows in cut]

    def prompts(self, prompt: str, rows: Sequence[int]) -> list[str]:
        """Return a prompt for each sample: the same one, or its own caption."""
        return [self.samples.caption(row) if prompt == OWN else prompt for row in rows]

    def embeddings(self, row: int) -> ImageEmbeddings:
        """Return the first reference of a sample as the pipeline takes it."""
        tensors = self.samples.row(row)
        inputs: dict[Input, Tensor] = {name: tensors[name][:1].float() for name in self.blanks}
        return ImageEmbeddings(inputs, {name: blank.cpu().float() for name, blank in self.blanks.items()})


def per_sample(dropped: Tensor, value: Tensor) -> Tensor:
    """Reshape one boolean per sample to the axes of `value`."""
    return dropped.reshape(-1, *(1,) * (value.ndim - 1))


def move_batch(batch: PromptBatch, device: torch.device) -> PromptBatch:
    """Move a batch to the device; from pinned memory this does not wait."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {name: move(inner) for name, inner in value.items()}
        return Draws(*map(move, value)) if isinstance(value, Draws) else value

    return PromptBatch(*map(move, batch))
