"""Load the judges of a benchmark, and find a judge that is the encoder that conditions the method."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imprompt import mini
from imprompt.evaluation.judges.characters import load_judge
from imprompt.evaluation.judges.clip import load_clip_judge
from imprompt.evaluation.judges.image import load_image_judge
from imprompt.evaluation.judges.judge import Judge
from imprompt.evaluation.settings import JudgingSettings
from imprompt.inputs.encoder import ImageEncoder
from imprompt.runtime.devices import choose_device

EMBEDDED = "mini"

ROUNDING = 2**-7
"""Two roundings of one weight, to bfloat16 and to float16, differ by less than this share of it."""

NO_PICTURE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""Prefixes of the names of a CLIP's weights that are not in its image tower."""

SHORT_NAMES = {"dinov2": "DINOv2", "dino": "DINO", "siglip": "SigLIP", "clip": "CLIP", "embedded": "judge"}


@dataclass(frozen=True)
class LoadedJudge:
    """A judge of a benchmark.

    Attributes:
        model: scores pictures
        is_self: whether it is the encoder that conditions the method
    """

    model: Judge
    is_self: bool

    @property
    def name(self) -> str:
        """The judge's name."""
        return self.model.name

    @property
    def reads_text(self) -> bool:
        """Whether the judge scores captions too."""
        return self.model.reads_text

    @property
    def title(self) -> str:
        """The heading of its similarity to the reference: "CLIP-I", or "CLIP-I (self)"."""
        return self._title("I")

    @property
    def text_title(self) -> str:
        """The heading of its similarity to the text: "CLIP-T", or "CLIP-T (self)"."""
        return self._title("T")

    def _title(self, letter: str) -> str:
        name = self.name.lower()
        short = next((short for word, short in SHORT_NAMES.items() if word in name), self.name)
        return f"{short}-{letter}" + (" (self)" if self.is_self else "")


def load_judges(settings: JudgingSettings, conditioning: nn.Module | None) -> list[LoadedJudge]:
    """Load every judge, the one that reads text first, on a GPU if there is one.

    Args:
        settings: names the judges
        conditioning: the image encoder that conditions the method; None if it has none

    Raises:
        UnknownModel: a judge cannot be found
    """
    device = choose_device()
    embedded = settings.clip == EMBEDDED
    first = load_judge(mini.WEIGHTS / "judge") if embedded else load_clip_judge(settings.clip)
    judges = [first, *(load_image_judge(name) for name in settings.image)]
    return [LoadedJudge(judge.to(device), is_self(judge, conditioning)) for judge in judges]


def is_self(judge: Judge, image_encoder: ImageEncoder | nn.Module | None) -> bool:
    """Whether the judge uses the image tower that conditions the generator.

    The weights of the towers are compared, in whatever format they were loaded, and names of files are not.
    Projections and text towers do not count. An encoder that was fine-tuned by less than the precision of
    bfloat16 counts as the same one.

    Args:
        judge: scores pictures
        image_encoder: conditions the generator; None for a method without an image encoder
    """
    if image_encoder is None:
        return False
    model = image_encoder.model if isinstance(image_encoder, ImageEncoder) else image_encoder
    one, other = _tower_weights(judge.network), _tower_weights(model)
    return bool(one) and one.keys() == other.keys() and all(_are_equal(one[n], other[n]) for n in one)


def _tower_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model's image tower, by their names in it."""
    weights = {n: w for n, w in model.state_dict().items() if not n.startswith(NO_PICTURE)}
    return {name.removeprefix("vision_model."): weight for name, weight in weights.items()}


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if one.shape != other.shape:
        return False
    return torch.allclose(one.float().cpu(), other.float().cpu(), rtol=ROUNDING, atol=1e-6)
