"""Is an image like its reference, or like its text?

    cos(a, b) = a·b / (‖a‖ ‖b‖)

All cosines are computed in float64, are in [-1, 1], and do not depend on the features' lengths.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CLIP_SCORE_WEIGHT = 2.5
"""CLIPScore's w, which stretches a cosine to about [0, 1] (arXiv 2104.08718, section 3)."""


def cosine_similarity(
    left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"]
) -> Float[Tensor, "left right"]:
    """Return the cosine of every left feature with every right one."""
    return F.normalize(left.double(), dim=-1) @ F.normalize(right.double(), dim=-1).T


def paired_cosine(
    left: Float[Tensor, "pairs dim"], right: Float[Tensor, "pairs dim"]
) -> Float[Tensor, " pairs"]:
    """Return the cosine of each left feature with its right one: CLIP-I or DINO-I, depending on the features.

    The range is [-1, 1], without unit; 1 is the reference itself. Pitfalls: a copy wins, so report the copy
    rate and the diversity with it; a shuffled reference scores far above 0, so report the floor with it; an
    encoder that conditions the generator must not be the judge.
    """
    return (F.normalize(left.double(), dim=-1) * F.normalize(right.double(), dim=-1)).sum(dim=-1)


def clip_t(
    image_features: Float[Tensor, "pairs dim"], text_features: Float[Tensor, "pairs dim"]
) -> Float[Tensor, " pairs"]:
    """Return CLIP-T as a cosine: each image with its caption, c = cos(image, text).

    The range is [-1, 1], without unit; with OpenAI's CLIP it is 0.2 to 0.35 for good pairs. Papers print
    three scales under one name: this one, `clip_score` (2.5 c) and `clip_percent` (100 c). IP-Adapter's Table
    1 has 2.5 c (arXiv 2308.06721), DreamBooth's tables have c (arXiv 2208.12242). A caption longer than the
    text encoder's length is judged by its beginning.
    """
    return paired_cosine(image_features, text_features)


def clip_score(cosines: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """Return CLIPScore, w · max(c, 0) with w = 2.5, of cosines from `clip_t` (arXiv 2104.08718, equation 1).

    The range is [0, 2.5]. The authors put "A photo depicts" before every caption; the caller decides that.
    """
    return CLIP_SCORE_WEIGHT * cosines.clamp(min=0)


def clip_percent(cosines: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """Return the cosines of `clip_t` times 100, range [-100, 100].

    The CLIPScore of torchmetrics is the mean of this one, cut off at 0.
    """
    return 100 * cosines


def shuffled_gap(
    similarity: Float[Tensor, "queries gallery"],
    right: Int[Tensor, " queries"],
    shuffled: Int[Tensor, " queries"],
) -> Float[Tensor, " queries"]:
    """Return the similarity to the true reference minus that to a shuffled one, for each query.

        gap = cos(picture, its reference) - cos(picture, another reference)

    The range is [-2, 2]; 0 if the reference has no effect. A mean gap whose interval excludes 0 says that the
    image prompt acts at all; retrieval says how precisely.
    """
    return (similarity.gather(1, right[:, None]) - similarity.gather(1, shuffled[:, None]))[:, 0]


def mean_distance(features: Float[Tensor, "pictures dim"]) -> float:
    """Return the diversity: the mean of 1 - cos over all pairs of two or more images of one reference.

    The range is [0, 2]; 0 if all are equal. Pitfall: noise is the most diverse image of all.

    Raises:
        ValueError: there are fewer than two images
    """
    return float(distances_to_others(features).mean())


def distances_to_others(features: Float[Tensor, "pictures dim"]) -> Float[Tensor, " pictures"]:
    """Return each image's mean of 1 - cos to all others of one reference; their mean is `mean_distance`.

    Raises:
        ValueError: there are fewer than two images
    """
    if len(features) < 2:
        raise ValueError("a distance needs two pictures")
    similarity = cosine_similarity(features, features)
    return 1 - (similarity.sum(dim=1) - similarity.diagonal()) / (len(features) - 1)


def normalize_score(score: float | int, *, floor: float | int, ceiling: float | int) -> float:
    """Return where a score is between floor (0) and ceiling (1): (score - floor) / (ceiling - floor).

    Any range: below 0 is worse than a shuffled reference, above 1 better than a light copy. It is NaN if
    floor and ceiling are equal.
    """
    return (score - floor) / (ceiling - floor) if ceiling != floor else float("nan")
