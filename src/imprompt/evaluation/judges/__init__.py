"""Judges turn pictures and captions into features to be compared. See `imprompt.evaluation.metrics`.

    load_judge          the embedded judge, which reads the attributes of the embedded model's characters
    load_clip_judge     CLIP: pictures and captions in one space (CLIP-I, CLIP-T)
    load_image_judge    DINO, DINOv2, SigLIP, ...: pictures only (DINO-I, ...)
    load_judges         all judges of a benchmark

A judge that is also the encoder that conditions the generator rewards whatever that encoder prefers.
`is_self` finds such a judge, and tables write "self" next to its scores.
"""

from imprompt.evaluation.judges.characters import CharacterJudge, EmbeddedJudge, load_judge
from imprompt.evaluation.judges.clip import ClipJudge, load_clip_judge
from imprompt.evaluation.judges.image import ImageJudge, load_image_judge
from imprompt.evaluation.judges.judge import Judge
from imprompt.evaluation.judges.loading import LoadedJudge, is_self, load_judges

__all__ = [
    "CharacterJudge",
    "ClipJudge",
    "EmbeddedJudge",
    "ImageJudge",
    "Judge",
    "LoadedJudge",
    "is_self",
    "load_clip_judge",
    "load_image_judge",
    "load_judge",
    "load_judges",
]
