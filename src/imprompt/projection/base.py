"""Base classes of image projections."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.inputs.choices import Input


class ImageProjection(nn.Module):
    """A module that maps each picture to image tokens, which are as wide as the base model's text embeddings.

    `forward` takes the inputs named by `takes` in that order, each "batch d" (features: "batch patches d").
    It returns the tokens, "batch tokens context_dim".

    The `state_dict` of every projection is the `image_proj` part of an official checkpoint, name for name.

    Attributes:
        takes: width of each input, in the order of `forward`'s arguments
        context_dim: width of a token
        tokens: number of tokens of one picture
    """

    takes: Mapping[Input, int]
    context_dim: int
    tokens: int


class EmbeddingProjection(ImageProjection):
    """c_i = LayerNorm(reshape(f(e))): the tokens of one embedding e. A zero embedding is "no image".

    Args:
        takes: the embedding's name and width
        layers: f, "batch embedding_dim" → "batch tokens·context_dim"
        context_dim: width of the text embeddings
        tokens: N of the paper
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        takes: Mapping[Input, int],
        layers: nn.Module,
        context_dim: int,
        tokens: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.takes, self.context_dim, self.tokens = takes, context_dim, tokens
        self.proj, self.norm = layers, nn.LayerNorm(context_dim)
        initialize_linear_layers(self, generator)

    def forward(
        self, embedding: Float[Tensor, "batch embedding_dim"]
    ) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project embeddings to image tokens."""
        return self.norm(self.proj(embedding).reshape(-1, self.tokens, self.context_dim))


def build_two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build W₂ GELU(W₁ e + b₁) + b₂."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def initialize_linear_layers(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of all linear layers as `nn.Linear` does, uniformly in ±1/√inputs, by a generator.

    Without a generator the layers keep their weights, which torch's global one has drawn.
    """
    if generator is None:
        return
    for layer in (layer for layer in module.modules() if isinstance(layer, nn.Linear)):
        bound = 1 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
