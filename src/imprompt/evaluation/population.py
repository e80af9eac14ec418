"""All pictures together: whether they look like real drawings."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import Interval, bootstrap_interval, kid
from imprompt.evaluation.sampling import Pictures

PARTS = 5
"""KID is measured on so many disjoint parts of the pictures; its interval is over them."""


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
