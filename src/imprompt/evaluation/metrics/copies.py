"""Is an image a copy of one that was trained on?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

COPY_RATIO = 1 / 3
"""A copy is nearer than this to one training picture, relative to the second nearest one (arXiv 2505.16959,
2505.17638).
"""

CHUNK = 1024


def copy_ratios(
    features: Float[Tensor, "pictures dim"], gallery: Float[Tensor, "gallery dim"]
) -> Float[Tensor, " pictures"]:
    """Return how much nearer an image is to one gallery item than to any other: d₁ / d₂.

    d₁ and d₂ are the Euclidean distances to the nearest and to the second nearest item, between features of
    length one. The range is [0, 1]; 0 is an item itself, 1 is in the middle of two. Pitfall: an item that is
    in the gallery twice (two almost equal drawings) hides its copies; only its exact copy, d₁ = d₂ = 0, is 0
    all the same.

    Raises:
        ValueError: the gallery has fewer than two items
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

    Report it with the rate of held-out pictures, which is what chance and similar drawings give.
    """
    return ratios < COPY_RATIO
