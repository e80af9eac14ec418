"""The projection of FLUX.1 Redux: every feature of the picture becomes one token behind the text."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.projection.base import ImageProjection, initialize_linear_layers


class TokenProjection(ImageProjection):
    """c_i = W_down SiLU(W_up f + b_up) + b_down, feature by feature.

    black-forest-labs/flux, src/flux/modules/image_embedders.py; diffusers, `ReduxImageEncoder`.

    Args:
        feature_dim: width of a feature (1152 for SigLIP so400m)
        context_dim: width of the text embeddings (4096 for T5-XXL)
        tokens: number of the image's features (729 for SigLIP at 384 px)
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        feature_dim: int,
        context_dim: int,
        tokens: int = 729,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.takes = {"last_image_features": feature_dim}
        self.context_dim, self.tokens = context_dim, tokens
        self.redux_up = nn.Linear(feature_dim, 3 * context_dim)
        self.redux_down = nn.Linear(3 * context_dim, context_dim)
        initialize_linear_layers(self, generator)

    def forward(
        self, features: Float[Tensor, "batch patches feature_dim"]
    ) -> Float[Tensor, "batch patches {self.context_dim}"]:
        """Project the last hidden states of an encoder to image tokens, in their order."""
        return self.redux_down(F.silu(self.redux_up(features)))
