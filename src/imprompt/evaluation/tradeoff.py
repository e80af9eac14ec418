"""Text against image over λ: the more a picture follows its reference, the less it follows its text.

image = gap to a shuffled reference / that of a light copy      0: nothing of the reference, 1: a copy
text  = asked gap / that of the base alone (λ = 0)              0: nothing of the text, 1: as without image
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imprompt.evaluation.metrics import scale_curve
from imprompt.evaluation.sampling import Condition, Settings
from imprompt.evaluation.scoring import (
    COPY,
    PROMPTED,
    WITH_TEXT,
    Score,
    by_concept,
    over_concepts,
    over_known,
    under,
)

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


def curve_conditions(settings: Settings) -> list[Condition]:
    """Every λ with the text; the last one is what is scored with text anyway."""
    return [Condition(_name(scale), scale, settings.asking) for scale in SCALES]


def _name(scale: float | int) -> str:
    return WITH_TEXT if scale == SCALES[-1] else f"{WITH_TEXT}, scale {scale:g}"


def curve_figures(scores: Sequence[Score], settings: Settings) -> dict[str, Any]:
    """The curve over the concepts that have a picture at every λ.

    Args:
        scores: of all conditions
        settings: the texts
    """
    concepts = {score.concept for score in under(scores, _name(SCALES[0]))}
    known = [score for score in scores if score.concept in concepts]
    ceiling = over_concepts(under(known, COPY), lambda score: score.gap).mean
    at = [under(known, _name(scale)) for scale in SCALES]
    alone = over_concepts(at[0], lambda score: score.asked_gap).mean
    gaps = [_values(by_concept(several, lambda score: score.gap / ceiling)) for several in at]
    shares = [_values(by_concept(several, lambda score: score.asked_gap / alone)) for several in at]
    curve = scale_curve(np.array(SCALES), np.array(shares), np.array(gaps))
    plain = [score for score in under(known, PROMPTED) if score.seed == 0]
    return {
        "concepts": len(concepts),
        "asked": str(settings.asking),
        "asked gap of the base": alone,
        "scales": list(SCALES),
        "image": curve.reference,
        "text": curve.prompt,
        "product": curve.product,
        "area": curve.area,
        "best scale": SCALES[curve.best],
        "similarity to text": [over_known(several, lambda score: score.text_similarity) for several in at],
        "without text": {
            "image": over_concepts(plain, lambda score: score.gap / ceiling),
            "text": over_concepts(plain, lambda score: score.asked_gap / alone),
            "similarity to text": over_known(plain, lambda score: score.text_similarity),
        },
    }


def _values(values: Mapping[str, float]) -> list[float]:
    """In the concepts' order, which must be one and the same at every λ."""
    return [values[concept] for concept in sorted(values)]
