"""The style of the fine-tuned base: line drawings, ink on paper, made from any picture by one rule."""

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.mini.edges import compute_edges

PAPER = (0.965, 0.945, 0.9)
INK = (0.13, 0.16, 0.28)
"""The colors of a line drawing, RGB from 0 to 1."""


def draw_lines(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
    """Turn pictures in [-1, 1] into line drawings: ink where colors meet, paper elsewhere."""
    paper, ink = (torch.tensor(color, device=pixels.device)[:, None, None] for color in (PAPER, INK))
    strength = compute_edges(pixels)
    return (paper + (ink - paper) * strength) * 2 - 1
