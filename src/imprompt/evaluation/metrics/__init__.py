"""Metrics: pure functions of features and scores, with intervals. `judges` compute the features.

    similarity      is it like its reference, like its text: CLIP-I, DINO-I, CLIP-T, gaps, shares of a range
    retrieval       can it be found among others: retrieval@k
    distributions   are all images together like real ones: KID, FID, CMMD
    copies          is it a copy: ratio of the nearest distance to the second nearest
    curves          prompt following against reference following over λ
    intervals       how certain the means are: bootstraps over concepts

CLIP-I and DINO-I are one function of two encoders' features. docs/metrics.md explains each metric.
"""

from imprompt.evaluation.metrics.copies import COPY_RATIO, copy_ratios, is_copy
from imprompt.evaluation.metrics.curves import ScaleCurve, area_difference, dominated_area, scale_curve
from imprompt.evaluation.metrics.distributions import cmmd, fid, kid
from imprompt.evaluation.metrics.intervals import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_difference,
    bootstrap_interval,
    group_means,
)
from imprompt.evaluation.metrics.retrieval import TIE, chance_within, is_retrieved, retrieval_ranks
from imprompt.evaluation.metrics.similarity import (
    CLIP_SCORE_WEIGHT,
    clip_percent,
    clip_score,
    clip_t,
    cosine_similarity,
    distances_to_others,
    mean_distance,
    normalize_score,
    paired_cosine,
    shuffled_gap,
)

__all__ = [
    "CLIP_SCORE_WEIGHT",
    "CONFIDENCE",
    "COPY_RATIO",
    "RESAMPLES",
    "TIE",
    "ScaleCurve",
    "area_difference",
    "bootstrap_difference",
    "bootstrap_interval",
    "chance_within",
    "clip_percent",
    "clip_score",
    "clip_t",
    "cmmd",
    "copy_ratios",
    "cosine_similarity",
    "distances_to_others",
    "dominated_area",
    "fid",
    "group_means",
    "is_copy",
    "is_retrieved",
    "kid",
    "mean_distance",
    "normalize_score",
    "paired_cosine",
    "retrieval_ranks",
    "scale_curve",
    "shuffled_gap",
]
