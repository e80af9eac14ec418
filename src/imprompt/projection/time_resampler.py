"""The projection of Stable Diffusion 3.5's adapter: a resampler that knows the time step.

With t̂ the embedding of the time step, features x = W_in f + b + t̂, and queries z, each layer does

    z ← z + W_out Attn(W_q ẑ, W_k [LayerNorm₁(x); ẑ], W_v [LayerNorm₁(x); ẑ])      ẑ = M₁(LayerNorm₂(z))
    z ← z + W_down GELU(W_up M₂(LayerNorm(z)))

where M(y) = y (1 + scale) + shift, and both pairs of shift and scale are linear in SiLU(t̂). The last state of
the queries is mapped to tokens, LayerNorm(W z + b). Source: InstantX/SD3.5-Large-IP-Adapter,
models/resampler.py; diffusers, `IPAdapterTimeImageProjection`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.projection.base import ImageProjection, initialize_linear_layers
from imprompt.projection.perceiver import PerceiverAttention, PerceiverShape, build_feed_forward


class TimeEmbedding(nn.Module):
    """t̂ = W₂ SiLU(W₁ (cos tω, sin tω) + b₁) + b₂ with frequencies ω from 1 to 1/10000.

    Args:
        waves: number of cosines and sines together
        width: width of the result
    """

    def __init__(self, waves: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(waves, width), nn.Linear(width, width)

    def forward(self, timestep: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Embed timesteps from 0 to 1000."""
        half = self.linear_1.in_features // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep[:, None].float() * torch.exp(-math.log(10000) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(F.silu(self.linear_1(waves.to(self.linear_1.weight))))


class TimeResamplerLayer(nn.ModuleList):
    """One layer: its attention, its feed-forward layers, and the shifts and scales of the time step."""

    def __init__(self, shape: PerceiverShape) -> None:
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(shape.width, 4 * shape.width))
        super().__init__([PerceiverAttention(shape), build_feed_forward(shape), modulation])

    def forward(
        self,
        features: Float[Tensor, "batch patches width"],
        queries: Float[Tensor, "batch tokens width"],
        time: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the next state of the queries."""
        attention, feed_forward, modulation = self
        shift, scale, next_shift, next_scale = modulation(time)[:, None].chunk(4, dim=-1)
        queries = queries + attention(features, queries, shift, scale)
        norm, *matrices = feed_forward.children()
        inside = norm(queries) * (1 + next_scale) + next_shift
        for layer in matrices:
            inside = layer(inside)
        return queries + inside


class TimeResamplerProjection(ImageProjection):
    """Features and a time step → tokens, and the embedding of the time step that the blocks' norms take.

    Args:
        feature_dim: width of an image feature (1152 for SigLIP so400m)
        context_dim: width of a token (2432)
        tokens: number of queries
        shape: sizes of the resampler; by default as wide as a token
        waves: number of waves that embed the time step
        generator: random generator of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        feature_dim: int,
        context_dim: int,
        tokens: int = 64,
        *,
        shape: PerceiverShape | None = None,
        waves: int = 320,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = shape or PerceiverShape(width=context_dim)
        self.takes = {"image_features": feature_dim}
        self.context_dim, self.tokens, self.time_dim = context_dim, tokens, shape.width
        self.time_embedding = TimeEmbedding(waves, shape.width)
        self.proj_in = nn.Linear(feature_dim, shape.width)
        self.layers = nn.ModuleList(TimeResamplerLayer(shape) for _ in range(shape.depth))
        self.proj_out = nn.Linear(shape.width, context_dim)
        self.norm_out = nn.LayerNorm(context_dim)
        queries = torch.randn(1, tokens, shape.width, generator=generator) / math.sqrt(shape.width)
        self.latents = nn.Parameter(queries)
        initialize_linear_layers(self, generator)

    def forward(
        self,
        image_features: Float[Tensor, "batch patches feature_dim"],
        timestep: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch {self.tokens} {self.context_dim}"], Float[Tensor, "batch time_dim"]]:
        """Project image features to image tokens at a time step; "no image" is zero features."""
        time = self.time_embedding(timestep)
        features = self.proj_in(image_features) + time[:, None]
        queries = self.latents.expand(len(image_features), -1, -1)
        for layer in self.layers:
            queries = layer(features, queries, time)
        return self.norm_out(self.proj_out(queries)), time
