"""The judges that a benchmark asks for, and whether one of them is the encoder that conditions the method."""

from dataclasses import dataclass

import torch
from torch import nn

from imprompt import mini
from imprompt.evaluation.judges import Judge, is_self, load_clip_judge, load_image_judge, load_judge
from imprompt.evaluation.suites.settings import JudgingSettings

EMBEDDED = "mini"


@dataclass(frozen=True)
class Seat:
    """A judge and its place.

    Attributes:
        judge: who scores
        is_self: whether it is the encoder that conditions the method
        short: what columns call it: "CLIP", "DINO", ...
    """

    judge: Judge
    is_self: bool
    short: str

    @property
    def title(self) -> str:
        """What columns call its score of likeness: "CLIP-I", or "CLIP-I (self)"."""
        return f"{self.short}-I" + (" (self)" if self.is_self else "")

    @property
    def text_title(self) -> str:
        """What columns call its score of text: "CLIP-T", or "CLIP-T (self)"."""
        return f"{self.short}-T" + (" (self)" if self.is_self else "")


def load_judges(settings: JudgingSettings, conditioning: nn.Module | None) -> list[Seat]:
    """Load every judge, the one that reads text first.

    Raises:
        UnknownModel: one is not there
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = (
        load_judge(mini.WEIGHTS / "judge") if settings.clip == EMBEDDED else load_clip_judge(settings.clip)
    )
    judges = [first, *(load_image_judge(name) for name in settings.image)]
    return [Seat(judge.to(device), is_self(judge, conditioning), _short(judge)) for judge in judges]


def _short(judge: Judge) -> str:
    known = {"dinov2": "DINOv2", "dino": "DINO", "siglip": "SigLIP", "clip": "CLIP", "embedded": "judge"}
    return next((short for word, short in known.items() if word in judge.name.lower()), judge.name)
