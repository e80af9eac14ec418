"""Two attentions mixed, both with the base's own keys and values: Versatile Diffusion."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imprompt.attention.layers import find_cross_attention_layers
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import BranchRows, Denoise, Inputs
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism

TRAINED_SHARE = 0.5
"""α in training."""


class TwoStreamMechanism(FineTunedMechanism):
    """output = (1-α) Attn(Q, K, V) + α Attn(Q, K_i, V_i); projection and the whole U-Net are trained.

    Versatile Diffusion (Xu et al. 2022) adds new cross-attention layers for images and mixes the two streams
    in sampling. Here both streams share the base's layers and are mixed in training too, which is what two
    streams without weights of their own can do.
    """

    name = "two-stream"

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Average the cross-attention to the text and to the image tokens."""
        with self._mix(self.project(inputs), TRAINED_SHARE):
            yield lambda noisy, times, text, added: predict(self.unet, noisy, times, text, added)

    @torch.no_grad()
    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate with α = `scale` / 2: 1 as in training, 0 only text, 2 only image."""
        positive, negative = self.project_both_branches(pipe, images, call)
        with self._mix(positive, scale * TRAINED_SHARE, negative):
            return call_pipeline(pipe, call)

    @contextlib.contextmanager
    def _mix(self, positive: Tensor, share: float | int, negative: Tensor | None = None) -> Iterator[None]:
        rows = BranchRows(positive, negative)
        layers: list[Any] = [attn for _, attn in find_cross_attention_layers(self.unet).values()]
        before = [attn.processor for attn in layers]
        try:
            for attn in layers:
                attn.set_processor(TwoStreamProcessor(attn.processor, rows, share))
            yield
        finally:
            for attn, processor in zip(layers, before, strict=True):
                attn.set_processor(processor)


class TwoStreamProcessor:
    """An attention processor that reads two contexts and mixes the results.

    Args:
        base: the processor for one context
        rows: the image tokens
        share: α, the weight of the image
    """

    def __init__(self, base: Any, rows: BranchRows, share: float | int) -> None:
        self.base, self.rows, self.share = base, rows, share

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return (1-α) Attn(text) + α Attn(image)."""
        tokens = self.rows.fit(len(hidden_states)).to(encoder_hidden_states)
        text = self.base(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        image = self.base(attn, hidden_states, tokens, *args, **kwargs)
        return torch.lerp(text, image, float(self.share))
