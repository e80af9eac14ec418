"""The linear projection of the paper: one image embedding → N tokens.

Ye et al. 2023, section 3.2.1: a linear layer makes N tokens out of one image embedding, then a LayerNorm.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.projection.base import ImageProjection, draw_linears


class LinearProjection(ImageProjection):
    """c_i = LayerNorm(reshape(W x + b)): the projection of the paper and of the published base adapters.

    Args:
        embedding_dim: width of the image embedding (1024 for ViT-H/14, 1280 for ViT-bigG/14)
        context_dim: width of the text embeddings (768 for SD1.5, 2048 for SDXL)
        tokens: N of the paper
        generator: randomness of the initial weights; torch's global one if not given
    """

    def __init__(
        self,
        embedding_dim: int,
        context_dim: int,
        tokens: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.takes = {"image_embedding": embedding_dim}
        self.context_dim, self.tokens = context_dim, tokens
        self.proj = nn.Linear(embedding_dim, tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)
        draw_linears(self, generator)

    def forward(
        self, image_embedding: Float[Tensor, "batch embedding_dim"]
    ) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project image embeddings to image tokens; a zero embedding is the paper's "no image"."""
        tokens = self.proj(image_embedding).reshape(-1, self.tokens, self.context_dim)
        return self.norm(tokens)
