"""What the judge does not read in an image: its edges, and whether it is a line drawing."""

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
"""A line drawing's pixel is at most this far from the colors between paper and ink, in RGB from 0 to 1.

White is 0.12 from paper, and the autoencoder's error is about 0.05.
"""


def measure_edge_gaps(pictures: Sequence[Image.Image], controls: Sequence[Image.Image]) -> list[float]:
    """Return the correlation of each image's edges with its own control's, minus the mean with the others'.

    The range is [-2, 2]; 0 if the edges have no effect. The others' edges are subtracted because all
    characters are similar.

    Args:
        pictures: at least two
        controls: edge images, one for each image
    """
    edges = [
        mini.edge_picture(picture, control.width) for picture, control in zip(pictures, controls, strict=True)
    ]
    correlation = to_unit_grays(edges) @ to_unit_grays(controls).T
    own = correlation.diagonal()
    return (own - (correlation.sum(dim=1) - own) / (len(correlation) - 1)).tolist()


def to_unit_grays(pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures pixels"]:
    """Return gray values of mean 0 and length 1, whose products are correlations."""
    values = torch.from_numpy(np.stack([np.asarray(one.convert("L")) for one in pictures])).flatten(1).float()
    centered = values - values.mean(dim=1, keepdim=True)
    return centered / centered.norm(dim=1, keepdim=True).clamp(min=1e-6)


def measure_line_shares(pictures: Sequence[Image.Image]) -> Float[np.ndarray, " pictures"]:
    """Return the share of each image's pixels whose color is between the paper's and the ink's, 0 to 1."""
    paper, stroke = np.array(PAPER), np.array(INK) - np.array(PAPER)
    shares = []
    for picture in pictures:
        colors = np.asarray(picture.convert("RGB"), np.float64) / 255 - paper
        along = np.clip(colors @ stroke / (stroke @ stroke), 0, 1)
        distance = np.linalg.norm(colors - along[..., None] * stroke, axis=-1)
        shares.append((distance <= LINE_TOLERANCE).mean())
    return np.array(shares)


def draw_line_pictures(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Return the line drawings of images, as the fine-tuned base was trained on them."""
    values = np.stack([np.asarray(one.convert("RGB")) for one in pictures])
    lines = draw_lines(to_pixels(values)).add(1).mul(127.5).round().clamp(0, 255)
    return [Image.fromarray(one) for one in lines.to(torch.uint8).movedim(1, -1).numpy()]
