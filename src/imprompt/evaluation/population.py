"""All pictures together: how much a concept's pictures differ, and whether all look like real drawings."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import Interval, bootstrap_interval, kid, mean_distance
from imprompt.evaluation.sampling import Pictures

PARTS = 5
"""KID is measured on so many disjoint parts of the pictures; its interval is over them."""


def diversity(judge: Judge, pictures: Pictures) -> Interval | None:
    """Mean distance among the pictures of one concept; nothing to say of one seed."""
    if len(pictures[0]) < 2:
        return None
    distances = [mean_distance(judge.features(several)) for several in pictures]
    return bootstrap_interval(np.array(distances))


def kid_figures(
    judge: Judge, drawings: Sequence[Image.Image], made: Mapping[str, Sequence[Image.Image]]
) -> dict[str, Interval]:
    """KID × 1000 of each set of pictures against the held-out drawings, by the judge's features.

    The drawings against themselves, half against half, stand for what is best.

    Args:
        judge: who scores
        drawings: all held-out ones
        made: name → pictures
    """
    real = judge.features(list(drawings))
    figures = {name: _kid(judge.features(list(pictures)), real) for name, pictures in made.items()}
    return {**figures, "held-out drawings": _kid(real[::2], real[1::2])}


def _kid(features: Float[Tensor, "pictures dim"], others: Float[Tensor, "others dim"]) -> Interval:
    """The mean over disjoint parts of the pictures; two pictures a part at least."""
    count = max(min(PARTS, len(features) // 2), 1)
    # Every k-th picture, so that a part has all kinds.
    parts = [features[start::count] for start in range(count)]
    return bootstrap_interval(np.array([1000 * kid(part, others) for part in parts]))


def first_pictures(pictures: Pictures) -> list[Image.Image]:
    """The first picture of each concept."""
    return [several[0] for several in pictures]
