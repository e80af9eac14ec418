"""Metrics: pure functions over features and scores, with intervals. What computes features is in `judge`.

    similarity      is it like its reference, like its text: CLIP-I, DINO-I, CLIP-T, gaps, shares of a range
    retrieval       is it told from others: retrieval@k
    distributions   are all pictures together like real ones: KID, FID, CMMD
    copies          is it a copy: ratio of the nearest distance to the second nearest
    curves          prompt- against reference-following over λ
    intervals       how sure all this is: bootstraps over concepts

CLIP-I and DINO-I are one function of two encoders' features. docs/metrics.md says what each metric tells.
"""

from imprompt.evaluation.metrics.copies import COPY_RATIO, copy_ratios, is_copy
from imprompt.evaluation.metrics.curves import ScaleCurve, area_difference, dominated_area, scale_curve
from imprompt.evaluation.metrics.distributions import cmmd, fid, kid
from imprompt.evaluation.metrics.intervals import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_difference,
    bootstrap_interval,
)
from imprompt.evaluation.metrics.retrieval import TIE, chance_within, found_within, retrieval_ranks
from imprompt.evaluation.metrics.similarity import (
    CLIP_SCORE_WEIGHT,
    clip_percent,
    clip_score,
    clip_t,
    cosine_similarity,
    distances_to_others,
    mean_distance,
    normalised,
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
    "found_within",
    "is_copy",
    "kid",
    "mean_distance",
    "normalised",
    "paired_cosine",
    "retrieval_ranks",
    "scale_curve",
    "shuffled_gap",
]
