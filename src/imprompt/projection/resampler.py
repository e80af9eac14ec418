"""The projection of Plus: a perceiver with learned queries on the grid of features."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.projection.base import ImageProjection, initialize_linear_layers
from imprompt.projection.perceiver import Perceiver, PerceiverShape


class ResamplerProjection(Perceiver, ImageProjection):
    """c_i = Perceiver(learned queries, features): Plus, Plus-Face, composition and Kolors-Plus.

    Args:
        feature_dim: width of an image feature (1280 for ViT-H/14)
        context_dim: width of the text embeddings (768 for SD1.5, 2048 for SDXL)
        tokens: number of queries
        shape: sizes of the perceiver, 768 wide for SD1.5 and 1280 for SDXL; by default as wide as the text
            embeddings
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        feature_dim: int,
        context_dim: int,
        tokens: int = 16,
        *,
        shape: PerceiverShape | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        shape = shape or PerceiverShape(width=context_dim)
        super().__init__(feature_dim, context_dim, shape)
        self.takes = {"image_features": feature_dim}
        self.context_dim, self.tokens = context_dim, tokens
        queries = torch.randn(1, tokens, shape.width, generator=generator) / math.sqrt(shape.width)
        self.latents = nn.Parameter(queries)
        initialize_linear_layers(self, generator)

    def forward(
        self, image_features: Float[Tensor, "batch patches feature_dim"]
    ) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project image features to image tokens; "no image" is that of all-zero normalized pixels."""
        return self.read(self.latents.expand(len(image_features), -1, -1), image_features)
