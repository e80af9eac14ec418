"""The linear projection of the paper, and one of two layers: one image embedding → N tokens.

Ye et al. 2023, section 3.2.1: a linear layer maps one image embedding to N tokens, and a LayerNorm follows.
"""

import torch
from torch import nn

from imprompt.projection.base import EmbeddingProjection, build_two_layers


class LinearProjection(EmbeddingProjection):
    """c_i = LayerNorm(reshape(W x + b)): the projection of the paper and of the published base adapters.

    Args:
        embedding_dim: width of the image embedding (1024 for ViT-H/14, 1280 for ViT-bigG/14)
        context_dim: width of the text embeddings (768 for SD1.5, 2048 for SDXL)
        tokens: N of the paper
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        embedding_dim: int,
        context_dim: int,
        tokens: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        layer = nn.Linear(embedding_dim, tokens * context_dim)
        super().__init__({"image_embedding": embedding_dim}, layer, context_dim, tokens, generator)


class HiddenProjection(EmbeddingProjection):
    """c_i = LayerNorm(reshape(W₂ GELU(W₁ e + b₁) + b₂)): the paper's projection with one more layer.

    It is not published. It gives the simple adapter, which trains only its projection, as many parameters as
    the decoupled adapter has, so that the two can be compared at equal size.

    Args:
        embedding_dim: width of the image embedding e
        context_dim: width of the text embeddings
        tokens: N of the paper
        hidden: width of the layer in between
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        embedding_dim: int,
        context_dim: int,
        tokens: int = 4,
        *,
        hidden: int,
        generator: torch.Generator | None = None,
    ) -> None:
        layers = build_two_layers(embedding_dim, hidden, tokens * context_dim)
        super().__init__({"image_embedding": embedding_dim}, layers, context_dim, tokens, generator)
