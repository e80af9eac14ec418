"""The projection of Full-Face: every feature of the picture becomes one token."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.errors import AdapterMismatch
from imprompt.projection.base import ImageProjection, initialize_linear_layers


class PatchProjection(ImageProjection):
    """c_i = LayerNorm(W₂ GELU(W₁ f + b₁) + b₂), feature by feature.

    Args:
        feature_dim: width of an image feature (1280 for ViT-H/14)
        context_dim: width of the text embeddings (768 for SD1.5)
        tokens: number of the image's features (257 for ViT-H/14: 16 × 16 patches and the class token)
        hidden_dim: width between the two layers; by default `feature_dim`
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        feature_dim: int,
        context_dim: int,
        tokens: int = 257,
        *,
        hidden_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.takes = {"image_features": feature_dim}
        self.context_dim, self.tokens = context_dim, tokens
        hidden_dim = hidden_dim or feature_dim
        self.proj = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, context_dim),
            nn.LayerNorm(context_dim),
        )
        initialize_linear_layers(self, generator)

    def forward(
        self, image_features: Float[Tensor, "batch patches feature_dim"]
    ) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project image features to image tokens, in their order.

        Raises:
            AdapterMismatch: the number of features is not `tokens`
        """
        if image_features.shape[1] != self.tokens:
            raise AdapterMismatch(
                f"this adapter takes {self.tokens} features of a picture; "
                f"this image encoder returns {image_features.shape[1]}"
            )
        return self.proj(image_features)
