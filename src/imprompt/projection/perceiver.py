"""A perceiver: a few queries attend to a grid of features, layer by layer.

Jaegle et al. 2021 (https://arxiv.org/abs/2103.03206), in the form of Flamingo's resampler (Alayrac et al.
2022, https://arxiv.org/abs/2204.14198, figure 5). With features x = W_in f and queries z, each layer does

    z ← z + W_out Attn(W_q z̄, W_k [x̄; z̄], W_v [x̄; z̄])          x̄ = LayerNorm₁(x), z̄ = LayerNorm₂(z)
    z ← z + W_down GELU(W_up LayerNorm(z))

and the last state of the queries is mapped to tokens: LayerNorm(W z + b). [·; ·] is along the sequence; W_k
and W_v are the two halves of one matrix. Published widths: tencent-ailab/IP-Adapter at 62e4af9,
`resampler.py`.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceiverShape:
    """The sizes inside a perceiver.

    Args:
        width: width of queries and features
        depth: number of layers
        attention_width: width of all heads together; by default `width`
        feed_forward_width: width inside the feed-forward layer; by default 4 · `width`
        head_dim: width of a head

    Raises:
        ValueError: `attention_width` is no multiple of `head_dim`
    """

    width: int
    depth: int = 4
    attention_width: int = 0
    feed_forward_width: int = 0
    head_dim: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention_width", self.attention_width or self.width)
        object.__setattr__(self, "feed_forward_width", self.feed_forward_width or 4 * self.width)
        if self.attention_width % self.head_dim:
            raise ValueError(
                f"an attention {self.attention_width} wide cannot have heads {self.head_dim} wide"
            )


class PerceiverAttention(nn.Module):
    """Attention of the queries to the features and to themselves."""

    def __init__(self, shape: PerceiverShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.norm1 = nn.LayerNorm(shape.width)
        self.norm2 = nn.LayerNorm(shape.width)
        self.to_q = nn.Linear(shape.width, shape.attention_width, bias=False)
        self.to_kv = nn.Linear(shape.width, 2 * shape.attention_width, bias=False)
        self.to_out = nn.Linear(shape.attention_width, shape.width, bias=False)

    def forward(
        self,
        features: Float[Tensor, "batch patches width"],
        queries: Float[Tensor, "batch tokens width"],
        shift: Float[Tensor, "batch 1 width"] | None = None,
        scale: Float[Tensor, "batch 1 width"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return W_out Attn(W_q z̄, W_k [x̄; z̄], W_v [x̄; z̄]), z̄ being scaled and shifted if so wanted."""
        features, queries = self.norm1(features), self.norm2(queries)
        if shift is not None and scale is not None:
            queries = queries * (1 + scale) + shift
        key, value = self.to_kv(torch.cat([features, queries], dim=1)).chunk(2, dim=-1)
        heads = (
            x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (self.to_q(queries), key, value)
        )
        read = F.scaled_dot_product_attention(*heads)
        return self.to_out(read.transpose(1, 2).flatten(2))


def build_feed_forward(shape: PerceiverShape) -> nn.Sequential:
    """Build W_down GELU(W_up LayerNorm(z))."""
    return nn.Sequential(
        nn.LayerNorm(shape.width),
        nn.Linear(shape.width, shape.feed_forward_width, bias=False),
        nn.GELU(),
        nn.Linear(shape.feed_forward_width, shape.width, bias=False),
    )


class Perceiver(nn.Module):
    """A perceiver that returns one token for each query.

    Args:
        feature_dim: width of a feature
        context_dim: width of a token
        shape: all other sizes
    """

    def __init__(self, feature_dim: int, context_dim: int, shape: PerceiverShape) -> None:
        super().__init__()
        self.proj_in = nn.Linear(feature_dim, shape.width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(shape), build_feed_forward(shape)]) for _ in range(shape.depth)
        )
        self.proj_out = nn.Linear(shape.width, context_dim)
        self.norm_out = nn.LayerNorm(context_dim)

    def read(
        self,
        queries: Float[Tensor, "batch tokens width"],
        features: Float[Tensor, "batch patches feature_dim"],
    ) -> Float[Tensor, "batch tokens context_dim"]:
        """Return the tokens of each sample's queries; the order of the features does not matter."""
        features = self.proj_in(features)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            queries = queries + attention(features, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))
