"""Is a picture like its reference, or like its text?

    cos(a, b) = a·b / (‖a‖ ‖b‖)

All cosines are computed in float64, lie in [-1, 1], and do not depend on the features' lengths.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CLIP_SCORE_WEIGHT = 2.5
"""CLIPScore's w, which stretches a cosine to about [0, 1] (arXiv 2104.08718, section 3)."""


def cosine_similarity(
    left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"]
) -> Float[Tensor, "left right"]:
    """Cosine of every left feature with every right one."""
    return F.normalize(left.double(), dim=-1) @ F.normalize(right.double(), dim=-1).T


def paired_cosine(
    left: Float[Tensor, "pairs dim"], right: Float[Tensor, "pairs dim"]
) -> Float[Tensor, " pairs"]:
    """Cosine of each left feature with its own right one: CLIP-I, DINO-I, by whose features they are.

    Range [-1, 1], no unit; 1 is the reference itself. Pitfalls: a copy wins, so say the copy rate and the
    diversity beside it; a shuffled reference is far above 0, so say the floor beside it; an encoder that
    conditions the generator must not judge it.
    """
    return (F.normalize(left.double(), dim=-1) * F.normalize(right.double(), dim=-1)).sum(dim=-1)


def clip_t(
    image_features: Float[Tensor, "pairs dim"], text_features: Float[Tensor, "pairs dim"]
) -> Float[Tensor, " pairs"]:
    """CLIP-T as a cosine: each picture with its caption, c = cos(image, text).

    Range [-1, 1], no unit; with OpenAI's CLIP 0.2 to 0.35 for good pairs. Papers print three scales under one
    name: this one, `clip_score` (2.5 c) and `clip_percent` (100 c). IP-Adapter's Table 1 has 2.5 c
    (arXiv 2308.06721), DreamBooth's tables have c (arXiv 2208.12242). A caption longer than the text
    encoder's length is judged by its beginning.
    """
    return paired_cosine(image_features, text_features)


def clip_score(cosines: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """CLIPScore, w · max(c, 0) with w = 2.5, of cosines from `clip_t` (arXiv 2104.08718, equation 1).

    Range [0, 2.5]. The authors put "A photo depicts" before every caption; that is the caller's choice.
    """
    return CLIP_SCORE_WEIGHT * cosines.clamp(min=0)


def clip_percent(cosines: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """The cosines of `clip_t` times 100, range [-100, 100].

    torchmetrics' CLIPScore is this one's mean, cut off at 0.
    """
    return 100 * cosines


def shuffled_gap(
    similarity: Float[Tensor, "queries gallery"],
    right: Int[Tensor, " queries"],
    shuffled: Int[Tensor, " queries"],
) -> Float[Tensor, " queries"]:
    """Similarity to the true reference minus similarity to a shuffled one, query by query.

        gap = cos(picture, its reference) - cos(picture, another reference)

    Range [-2, 2]; 0 if the reference has no say. A mean gap whose interval excludes 0 says that the image
    prompt acts at all; retrieval says how precisely.
    """
    return (similarity.gather(1, right[:, None]) - similarity.gather(1, shuffled[:, None]))[:, 0]


def mean_distance(features: Float[Tensor, "pictures dim"]) -> float:
    """Diversity: mean of 1 - cos over all pairs of two or more pictures of one reference, by their seeds.

    Range [0, 2]; 0 if they are all alike. Pitfall: noise is the most diverse picture of all.

    Raises:
        ValueError: fewer than two pictures
    """
    return float(distances_to_others(features).mean())


def distances_to_others(features: Float[Tensor, "pictures dim"]) -> Float[Tensor, " pictures"]:
    """Each picture's mean of 1 - cos to all others of one reference; their mean is `mean_distance`.

    Raises:
        ValueError: fewer than two pictures
    """
    if len(features) < 2:
        raise ValueError("a distance needs two pictures")
    similarity = cosine_similarity(features, features)
    return 1 - (similarity.sum(dim=1) - similarity.diagonal()) / (len(features) - 1)


def normalised(score: float | int, *, floor: float | int, ceiling: float | int) -> float:
    """Where a score lies between floor (0) and ceiling (1): (score - floor) / (ceiling - floor).

    Any range: below 0 is worse than a shuffled reference, above 1 better than a light copy. NaN where floor
    and ceiling are the same.
    """
    return (score - floor) / (ceiling - floor) if ceiling != floor else float("nan")
