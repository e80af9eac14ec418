"""Can an image's reference be found among others? Its rank in a gallery with only one right item.

Retrieval does not depend on an encoder's scale of similarities, and chance is known exactly.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

TIE = 1e-6
"""Similarities that differ by less are equal: equal pictures can differ in rounding."""


def retrieval_ranks(
    similarity: Float[Tensor, "queries gallery"], right: Int[Tensor, " queries"]
) -> Int[Tensor, " queries"]:
    """Return how many wrong gallery items score at least as high as the right one: 0 is the best rank.

    Args:
        similarity: of each query with each gallery item
        right: the right item's column, for each query

    Returns:
        range 0 to gallery - 1
    """
    own = similarity.gather(1, right[:, None])
    return (similarity >= own - TIE).sum(dim=1) - 1


def is_retrieved(ranks: Int[Tensor, " queries"], k: int) -> Bool[Tensor, " queries"]:
    """Whether the right item is among the first k (retrieval@k), for each query; the mean is in [0, 1].

    Pitfall: it grows as the gallery shrinks, so report the gallery's size, or chance, with it.
    """
    return ranks < k


def chance_within(gallery: int, k: int) -> float:
    """Return retrieval@k of blind guessing, min(k / gallery, 1)."""
    return min(k / gallery, 1.0)
