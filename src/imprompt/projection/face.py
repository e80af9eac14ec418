"""The projections of FaceID and FaceID-Plus: face embedding → tokens.

Sizes of the published adapters: tencent-ailab/IP-Adapter at 62e4af9, `ip_adapter_faceid.py`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.errors import AdapterMismatch, InvalidReference
from imprompt.projection.base import (
    EmbeddingProjection,
    ImageProjection,
    build_two_layers,
    initialize_linear_layers,
)
from imprompt.projection.perceiver import Perceiver, PerceiverShape


class FaceProjection(EmbeddingProjection):
    """c_i = LayerNorm(reshape(W₂ GELU(W₁ e + b₁) + b₂)): FaceID, and FaceID-Portrait with 16 tokens.

    Args:
        context_dim: width of the text embeddings (768 for SD1.5, 2048 for SDXL)
        tokens: number of tokens for each face
        embedding_dim: width of the face embedding
        hidden_dim: width between the two layers; 2 · `embedding_dim` if not given
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        context_dim: int,
        tokens: int = 4,
        *,
        embedding_dim: int = 512,
        hidden_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        layers = build_two_layers(embedding_dim, hidden_dim or 2 * embedding_dim, tokens * context_dim)
        super().__init__({"face_embedding": embedding_dim}, layers, context_dim, tokens, generator)


class FacePlusProjection(ImageProjection):
    """FaceID-Plus: the tokens i of the face are the queries of a perceiver over the picture's features f.

        i = LayerNorm(reshape(W₂ GELU(W₁ e + b₁) + b₂))
        version 1:  c_i = Perceiver(i, f)
        version 2:  c_i = i + s · Perceiver(i, f)

    The tensors of the two versions have the same names and shapes.

    Args:
        feature_dim: width of an image feature (1280 for ViT-H/14)
        context_dim: width of the text embeddings (768 for SD1.5, 2048 for SDXL)
        tokens: number of tokens for each face
        version: see above
        embedding_dim: width of the face embedding
        hidden_dim: width between the two layers of the face's part; 2 · `embedding_dim` if not given
        shape: sizes of the perceiver; by default as wide as the text embeddings
        generator: random generator of the initial weights; by default torch's global one

    Raises:
        AdapterMismatch: version 2 has a perceiver of another width than `context_dim`
    """

    def __init__(
        self,
        feature_dim: int,
        context_dim: int,
        tokens: int = 4,
        *,
        version: Literal[1, 2],
        embedding_dim: int = 512,
        hidden_dim: int | None = None,
        shape: PerceiverShape | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = shape or PerceiverShape(width=context_dim)
        if version == 2 and shape.width != context_dim:
            raise AdapterMismatch(
                f"version 2 of FaceID-Plus adds the face's tokens ({shape.width} wide) "
                f"to the picture's ({context_dim} wide); both must have the same width"
            )
        self.takes = {"face_embedding": embedding_dim, "image_features": feature_dim}
        self.context_dim, self.tokens, self.version = context_dim, tokens, version
        self.proj = build_two_layers(embedding_dim, hidden_dim or 2 * embedding_dim, tokens * shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.perceiver_resampler = Perceiver(feature_dim, context_dim, shape)
        initialize_linear_layers(self, generator)

    def forward(
        self,
        face_embedding: Float[Tensor, "batch embedding_dim"],
        image_features: Float[Tensor, "batch patches feature_dim"],
        strength: Float[Tensor, " batch"] | float | int = 1.0,
    ) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project faces to image tokens.

        Args:
            face_embedding: embedding of length 1; zeros for "no image"
            image_features: features of the cropped face; for "no image", those of all-zero normalized pixels
            strength: s of version 2, the weight of the picture's features relative to the face embedding

        Raises:
            InvalidReference: the strength is not 1 for version 1, which has no strength
        """
        width = self.norm.weight.shape[0]
        face = self.norm(self.proj(face_embedding).reshape(-1, self.tokens, width))
        read = self.perceiver_resampler.read(face, image_features)
        if self.version == 2:
            return face + _reshape_strength(strength) * read
        if (torch.as_tensor(strength) != 1).any():
            raise InvalidReference(
                "FaceID-Plus version 1 has no face scale; it must be 1 (version 2 has one)"
            )
        return read


def _reshape_strength(strength: Tensor | float | int) -> Tensor | float | int:
    return strength.reshape(-1, 1, 1) if isinstance(strength, Tensor) else strength
