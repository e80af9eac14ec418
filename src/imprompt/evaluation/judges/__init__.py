"""Judges: what turns pictures, and captions, into features to be compared. See `imprompt.evaluation.metrics`.

    load_judge          the embedded one, which reads the attributes of the embedded model's characters
    load_clip_judge     CLIP: pictures and captions in one space (CLIP-I, CLIP-T)
    load_image_judge    DINO, DINOv2, SigLIP, ...: pictures alone (DINO-I, ...)

Judging with the encoder that conditions the generator rewards whatever that encoder likes: `is_self` finds
such a judge out, and who uses it says "self" beside the figure.
"""

from imprompt.evaluation.judges.characters import CharacterJudge, EmbeddedJudge, load_judge
from imprompt.evaluation.judges.clip import ClipJudge, load_clip_judge
from imprompt.evaluation.judges.image import ImageJudge, load_image_judge
from imprompt.evaluation.judges.judge import Judge
from imprompt.evaluation.judges.likeness import is_self

__all__ = [
    "CharacterJudge",
    "ClipJudge",
    "EmbeddedJudge",
    "ImageJudge",
    "Judge",
    "is_self",
    "load_clip_judge",
    "load_image_judge",
    "load_judge",
]
