"""Two attentions mixed, both with the base's own keys and values: Versatile Diffusion."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imprompt.attention.layers import cross_attention_layers
from imprompt.errors import AmbiguousBatch
from imprompt.generation.pipeline_results import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.mechanisms.base import Denoise, Inputs, denoised
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism

TRAINED_SHARE = 0.5
"""α in training: half of each."""


class TwoStreamMechanism(FineTunedMechanism):
    """output = (1-α) Attn(Q, K, V) + α Attn(Q, K_i, V_i); projection and the whole U-Net are trained.

    Versatile Diffusion (Xu et al. 2022) has cross-attention layers of their own for pictures, trained from
    new beside the text's, and mixes the two when it draws. Ours has the same layers for both, and the mixing
    in training too: what two streams without weights of their own can do.
    """

    name = "two-stream"

    @contextlib.contextmanager
    def prompted(self, inputs: Inputs) -> Iterator[Denoise]:
        """Cross-attention reads the text and the image tokens, and gives the mean."""
        with self._mixed(self.projected(inputs), TRAINED_SHARE):
            yield lambda noisy, times, text, added: denoised(self.unet, noisy, times, text, added)

    @torch.no_grad()
    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with α = `scale` / 2: 1 as in training, 0 the text alone, 2 the image alone."""
        positive, negative = self.both_sides(pipe, images, call)
        with self._mixed(positive, scale * TRAINED_SHARE, negative):
            return call_pipeline(pipe, call)

    @contextlib.contextmanager
    def _mixed(self, positive: Tensor, share: float | int, negative: Tensor | None = None) -> Iterator[None]:
        rows = {len(positive): positive}
        if negative is not None:
            rows[2 * len(positive)] = torch.cat([negative, positive])
        layers: list[Any] = [attn for _, attn in cross_attention_layers(self.unet).values()]
        before = [attn.processor for attn in layers]
        try:
            for attn in layers:
                attn.set_processor(MixedAttention(attn.processor, rows, share))
            yield
        finally:
            for attn, processor in zip(layers, before, strict=True):
                attn.set_processor(processor)


class MixedAttention:
    """An attention processor that reads two contexts and mixes what comes of them.

    Args:
        base: the processor that reads one
        rows: how many samples → their image tokens
        share: α, the image's
    """

    def __init__(self, base: Any, rows: Mapping[int, Tensor], share: float | int) -> None:
        self.base, self.rows, self.share = base, rows, share

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """(1-α) Attn(text) + α Attn(image)."""
        if len(hidden_states) not in self.rows:
            raise AmbiguousBatch(
                f"the U-Net is given {len(hidden_states)} samples; the image prompts fit on "
                f"{' or '.join(map(str, self.rows))}"
            )
        tokens = self.rows[len(hidden_states)].to(encoder_hidden_states)
        text = self.base(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        image = self.base(attn, hidden_states, tokens, *args, **kwargs)
        return torch.lerp(text, image, float(self.share))
