"""A reference with its content shuffled: the input of ControlNet's shuffle model.

    shuffled(x, y) = reference(a(x, y), b(x, y))        a, b: two smooth random fields

ControlNet's own preprocessor (ContentShuffleDetector of lllyasviel/ControlNet-v1-1-nightly) enlarges coarse
uniform noise, one value for 256 px, with a cubic kernel, and stretches it to the range of a coordinate. This
code does the same. Its numbers differ: they come from the sample's seed, and the cubic kernel and its borders
are those of torch, not of OpenCV. A picture is resized to the size of the result first.
"""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from imprompt.inputs.crop import encoder_view

COARSE = 256
"""Pixels for each random value."""


def shuffle_content(picture: Image.Image, size: int, seed: int) -> Image.Image:
    """Return the middle square of a picture, `size` px wide, with its content shuffled smoothly."""
    square = torch.from_numpy(np.array(encoder_view(picture, size))).permute(2, 0, 1)[None].float()
    generator = Generator().manual_seed(seed)
    field = torch.stack([smooth_field(size, generator), smooth_field(size, generator)], dim=-1)
    moved = F.grid_sample(square, field[None] * 2 - 1, padding_mode="border", align_corners=True)
    return Image.fromarray(moved[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def smooth_field(size: int, generator: Generator) -> Float[Tensor, "{size} {size}"]:
    """Return coarse noise, enlarged, with values from exactly 0 to exactly 1."""
    around = size + 2 * COARSE
    coarse = torch.rand(1, 1, *[around // COARSE + 1] * 2, generator=generator)
    smooth = F.interpolate(coarse, (around, around), mode="bicubic", align_corners=True)
    smooth = smooth[0, 0, COARSE:-COARSE, COARSE:-COARSE]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())
