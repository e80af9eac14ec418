"""Styles that no icon set has, made from the drawings by rule: what a fine-tuned base is trained on.

blueprint    white lines where colours meet, pale blue where the drawing is light, on dark blue
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.errors import ConfigError
from imprompt.mini.edges import edges
from imprompt.training.data import EmojiPictures

PAPER = (20.0, 36.0, 104.0)
"""A blueprint's ground, RGB from 0 to 255; no caption names it."""

WASH = (128.0, 176.0, 240.0)
"""What white becomes in a blueprint; black becomes paper."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Lightness of red, green and blue (ITU-R BT.601)."""


class BlueprintPictures(EmojiPictures):
    """Every drawing as a blueprint, whatever ground its caption names: the style has its own."""

    def on_ground(
        self, rows: Sequence[int], grounds: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch 3 size size"]:
        """Blueprints in [-1, 1]; `grounds` only says how many."""
        rgba = self.pictures[torch.tensor(rows)].permute(0, 3, 1, 2).float() / 255
        return blueprint(rgba[:, :3], rgba[:, 3:]) * 2 - 1


STYLES: dict[str, type[EmojiPictures]] = {"blueprint": BlueprintPictures}
"""Name → the drawings in that style."""


def styled_pictures(style: str, folder: Path, *, held_out: bool = False) -> EmojiPictures:
    """The data set in `folder`, drawn in a style.

    Raises:
        ConfigError: an unknown style
    """
    if style not in STYLES:
        raise ConfigError(f"there is no style {style!r}; the styles are: {', '.join(STYLES)}")
    return STYLES[style](folder, held_out=held_out)


def blueprint(
    colours: Float[Tensor, "batch 3 size size"], alpha: Float[Tensor, "batch 1 size size"]
) -> Float[Tensor, "batch 3 size size"]:
    """Lines and a wash on paper; everything in [0, 1]."""
    on_grey = alpha * colours + (1 - alpha) * 0.5  # neither a white nor a black drawing is lost on it
    lines = torch.maximum(edges(on_grey * 2 - 1), edges(alpha.expand_as(colours) * 2 - 1))
    paper, wash, weights = (torch.tensor(rgb)[:, None, None] for rgb in (PAPER, WASH, LUMINANCE))
    lightness = alpha * (colours * weights).sum(dim=1, keepdim=True)
    washed = (paper + lightness * (wash - paper)) / 255
    return lines + (1 - lines) * washed
