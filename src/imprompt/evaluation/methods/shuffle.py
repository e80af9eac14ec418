"""The reference with its content shuffled: what ControlNet's shuffle model is shown.

    shuffled(x, y) = reference(a(x, y), b(x, y))        a, b: two smooth random fields

ControlNet's own preprocessor (ContentShuffleDetector of lllyasviel/ControlNet-v1-1-nightly) takes cubic
enlargements of coarse uniform noise, one value in 256 px, each stretched to the range of a coordinate. So do
we, by code of our own. Ours differs in the numbers: they come from the sample's seed, and the cubic kernel
and its borders are torch's, not OpenCV's. A picture is brought to the size of the result first.
"""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from imprompt.inputs.crop import encoder_view

COARSE = 256
"""Pixels for one random value."""


def shuffled_content(picture: Image.Image, size: int, seed: int) -> Image.Image:
    """The middle square of a picture, `size` px wide, with its content moved about smoothly."""
    square = torch.from_numpy(np.array(encoder_view(picture, size))).permute(2, 0, 1)[None].float()
    generator = Generator().manual_seed(seed)
    field = torch.stack([smooth_field(size, generator), smooth_field(size, generator)], dim=-1)
    moved = F.grid_sample(square, field[None] * 2 - 1, padding_mode="border", align_corners=True)
    return Image.fromarray(moved[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def smooth_field(size: int, generator: Generator) -> Float[Tensor, "{size} {size}"]:
    """Coarse noise, enlarged, from 0 to 1 exactly."""
    around = size + 2 * COARSE
    coarse = torch.rand(1, 1, *[around // COARSE + 1] * 2, generator=generator)
    smooth = F.interpolate(coarse, (around, around), mode="bicubic", align_corners=True)
    smooth = smooth[0, 0, COARSE:-COARSE, COARSE:-COARSE]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())
