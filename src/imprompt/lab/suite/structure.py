"""What the judge does not read in a picture: whose edges it has, and whether it is a line drawing."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt import mini
from imprompt.lab.making.batches import to_pixels
from imprompt.lab.making.lines import INK, PAPER, draw_lines

LINE_TOLERANCE = 0.08
"""How far a pixel of a line drawing may lie from the colors between paper and ink, in RGB from 0 to 1.

White lies 0.12 from paper, and the autoencoder's error is about 0.05.
"""


def edge_gaps(pictures: Sequence[Image.Image], controls: Sequence[Image.Image]) -> list[float]:
    """The correlation of each picture's edges with its own control's, minus the mean with the others'.

    Range [-2, 2]; 0 if the edges have no say. Others' edges count because all characters are much alike.

    Args:
        pictures: two at least
        controls: edge pictures, one for each picture
    """
    edges = [
        mini.edge_picture(picture, control.width) for picture, control in zip(pictures, controls, strict=True)
    ]
    correlation = unit_grays(edges) @ unit_grays(controls).T
    own = correlation.diagonal()
    return (own - (correlation.sum(dim=1) - own) / (len(correlation) - 1)).tolist()


def unit_grays(pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures pixels"]:
    """Gray values of mean 0 and length 1, whose products are correlations."""
    values = torch.from_numpy(np.stack([np.asarray(one.convert("L")) for one in pictures])).flatten(1).float()
    centered = values - values.mean(dim=1, keepdim=True)
    return centered / centered.norm(dim=1, keepdim=True).clamp(min=1e-6)


def line_shares(pictures: Sequence[Image.Image]) -> list[float]:
    """The share of each picture's pixels whose color lies between the paper's and the ink's, 0 to 1."""
    pixels = to_pixels(stack(pictures)).movedim(1, -1) / 2 + 0.5
    paper, ink = torch.tensor(PAPER), torch.tensor(INK)
    direction = ink - paper
    along = ((pixels - paper) @ direction / direction.square().sum()).clamp(0, 1)
    distance = (pixels - (paper + along[..., None] * direction)).norm(dim=-1)
    return (distance <= LINE_TOLERANCE).float().mean(dim=(1, 2)).tolist()


def line_pictures(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The line drawings of pictures, as the fine-tuned base was taught them."""
    lines = draw_lines(to_pixels(stack(pictures))).add(1).mul(127.5).round().clamp(0, 255)
    return [Image.fromarray(one) for one in lines.to(torch.uint8).movedim(1, -1).numpy()]


def stack(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of one size as values from 0 to 255, (pictures, height, width, 3)."""
    return np.stack([np.asarray(one.convert("RGB")) for one in pictures])
