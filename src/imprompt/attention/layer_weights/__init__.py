"""The weight of an image prompt in each cross-attention layer: named modes, depth curves, free weights.

    output_N = Attn(Q, K, V) + λ · follow_N · Attn(Q, K', V')

Weights are set by *spatial transformer*: t = 0, 1, ... counts them in the order in which they run (down,
middle, up), and every layer inside one has its weight. Where a mode makes a layer *avoid* the reference,
the image tokens are on the negative branch of guidance instead of the positive one. What only that branch
contains is multiplied by 1 - w in the result, so guidance (w > 1) pushes away from it.
"""

from imprompt.attention.layer_weights.modes import Convention
from imprompt.attention.layer_weights.plot import plot_layers
from imprompt.attention.layer_weights.transformers import (
    LayerNames,
    SpatialTransformer,
    find_spatial_transformers,
)
from imprompt.attention.layer_weights.weights import Layers, LayerWeights, layer_weights, list_modes

__all__ = [
    "Convention",
    "LayerNames",
    "LayerWeights",
    "Layers",
    "SpatialTransformer",
    "find_spatial_transformers",
    "layer_weights",
    "list_modes",
    "plot_layers",
]
