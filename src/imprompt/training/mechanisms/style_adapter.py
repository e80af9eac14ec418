"""T2I-Adapter's style adapter: it reads the image's features itself, and appends tokens to the text."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.inputs.choices import Input
from imprompt.training.mechanisms.concatenated import ConcatenatedMechanism

TOKENS, LAYERS, HEAD_WIDTH = 8, 3, 64


class StyleProjection(nn.Module):
    """c_i = W LayerNorm(Transformer([f, s]))[-8:], with features f and eight learned tokens s.

    Source of the sizes: TencentARC/T2I-Adapter, `ldm/modules/encoders/adapter.py`, StyleAdapter.

    Args:
        feature_dim: width of an image feature
        context_dim: width of the text embeddings
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self, feature_dim: int, context_dim: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.takes: Mapping[Input, int] = {"image_features": feature_dim}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed() if generator else torch.initial_seed())
            self.style_tokens = nn.Parameter(torch.randn(1, TOKENS, feature_dim) * feature_dim**-0.5)
            self.norm_in, self.norm_out = nn.LayerNorm(feature_dim), nn.LayerNorm(feature_dim)
            self.transformer = nn.Sequential(*(_build_layer(feature_dim) for _ in range(LAYERS)))
            self.proj = nn.Linear(feature_dim, context_dim, bias=False)

    def forward(
        self, image_features: Float[Tensor, "batch patches feature_dim"]
    ) -> Float[Tensor, "batch 8 context_dim"]:
        """Return the image tokens."""
        style = self.style_tokens.expand(len(image_features), -1, -1)
        states = self.transformer(self.norm_in(torch.cat([image_features, style], dim=1)))
        return self.proj(self.norm_out(states[:, -TOKENS:]))


def _build_layer(width: int) -> nn.TransformerEncoderLayer:
    heads = max(1, width // HEAD_WIDTH)
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


class StyleAdapterMechanism(ConcatenatedMechanism):
    """output = Attn(Q, [K, K_i], [V, V_i]), with tokens of the style adapter of T2I-Adapter.

    T2I-Adapter (Mou et al. 2023) was trained on the features of CLIP ViT-L/14, the last ones; here these are
    the penultimate ones, as of every other mechanism that reads features.
    """

    name = "style-adapter"
    takes: ClassVar[tuple[Input, ...]] = ("image_features",)
