"""Is a picture a copy of one that was trained on?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

COPY_RATIO = 1 / 3
"""A picture nearer than this to one training picture, by the second nearest, is a copy (arXiv 2505.16959,
2505.17638)."""

CHUNK = 1024


def copy_ratios(
    features: Float[Tensor, "pictures dim"], gallery: Float[Tensor, "gallery dim"]
) -> Float[Tensor, " pictures"]:
    """How much nearer a picture is to one gallery item than to any other: d₁ / d₂.

    d₁ and d₂ are the distances to the nearest and to the second nearest item, Euclidean, between features of
    length one. Range [0, 1]; 0 is an item itself, 1 is between two. Pitfall: an item that the gallery holds
    twice (drawn twice almost alike) hides its copies; only its exact copy, d₁ = d₂ = 0, is 0 all the same.

    Raises:
        ValueError: a gallery of fewer than two
    """
    if len(gallery) < 2:
        raise ValueError("a ratio of distances needs a gallery of two or more")
    others = F.normalize(gallery.double(), dim=-1)
    pieces = F.normalize(features.double(), dim=-1).split(CHUNK)
    # Distances by differences, not by products: of a copy the products leave rounding errors only.
    nearest = [
        torch.cdist(piece, others, compute_mode="donot_use_mm_for_euclid_dist").topk(2, largest=False).values
        for piece in pieces
    ]
    first, second = torch.cat(nearest).unbind(dim=1)
    return torch.where(first == 0, 0.0, first / second)


def is_copy(ratios: Float[Tensor, " pictures"]) -> Bool[Tensor, " pictures"]:
    """Whether a ratio is below `COPY_RATIO`; the mean is the copy rate, in [0, 1].

    Say the rate of held-out pictures beside it: it is what chance and alike drawings make.
    """
    return ratios < COPY_RATIO
