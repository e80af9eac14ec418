"""Is the judge the encoder that conditions the generator? By weights: names of files prove nothing."""

import torch
from torch import Tensor, nn

from imprompt.evaluation.judges.judge import Judge
from imprompt.inputs.encoder import ImageEncoder

ROUNDING = 2**-7
"""Two roundings of one weight, to bfloat16 and to float16, lie nearer than this, relative to it."""

NO_PICTURE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""Beginnings of the names of a whole CLIP's weights that are not the image tower's."""


def is_self(judge: Judge, image_encoder: ImageEncoder | nn.Module | None) -> bool:
    """Whether the judge looks through the very image tower that conditions the generator.

    The towers' weights are compared, in whatever format they were loaded; their projections are not, nor what
    reads text. An encoder fine-tuned by less than bfloat16 can tell is the same one.

    Args:
        judge: who scores
        image_encoder: what conditions; None for a method without one
    """
    if image_encoder is None:
        return False
    model = image_encoder.model if isinstance(image_encoder, ImageEncoder) else image_encoder
    ours, theirs = tower(judge.network), tower(model)
    return bool(ours) and ours.keys() == theirs.keys() and all(alike(ours[n], theirs[n]) for n in ours)


def tower(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model's image tower, by their names in it."""
    kept = {n: w for n, w in model.state_dict().items() if not n.startswith(NO_PICTURE)}
    return {name.removeprefix("vision_model."): weights for name, weights in kept.items()}


def alike(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are one, but for rounding."""
    if left.shape != right.shape:
        return False
    return torch.allclose(left.float().cpu(), right.float().cpu(), rtol=ROUNDING, atol=1e-6)
