"""Is a picture told from others? Its rank among a gallery, where only one item is the right one.

Retrieval does not depend on an encoder's scale of similarities, and chance is known exactly.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

TIE = 1e-6
"""Similarities closer than this are equal: two flags that are one flag differ in rounding only."""


def retrieval_ranks(
    similarity: Float[Tensor, "queries gallery"], right: Int[Tensor, " queries"]
) -> Int[Tensor, " queries"]:
    """How many wrong gallery items score at least as high as the right one: 0 is first, a tie counts against.

    Args:
        similarity: of each query with each gallery item
        right: the right item's column, for each query

    Returns:
        range 0 to gallery - 1
    """
    own = similarity.gather(1, right[:, None])
    return (similarity >= own - TIE).sum(dim=1) - 1


def found_within(ranks: Int[Tensor, " queries"], k: int) -> Bool[Tensor, " queries"]:
    """Whether the right item is among the first k (retrieval@k, query by query); the mean is in [0, 1].

    Pitfall: it grows as the gallery shrinks; say the gallery's size, or chance, beside it.
    """
    return ranks < k


def chance_within(gallery: int, k: int) -> float:
    """Retrieval@k of blind guessing, min(k / gallery, 1)."""
    return min(k / gallery, 1.0)
