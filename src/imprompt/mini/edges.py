"""Edges of a picture: the control picture of the embedded ControlNet.

edges = min(1, |∇ picture| / STRONG)        |∇ ·|: Sobel's operator, the largest of the three channels
"""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

STRONG = 0.5
"""The gradient, relative to the range from black to white, from which on an edge is white."""


def edge_picture(picture: Image.Image, size: int = 128) -> Image.Image:
    """Return the edges of a picture, white on black: the control picture of `imprompt.mini.controlnet()`.

    Args:
        picture: any picture; it is cropped to its middle square, and transparent parts count as white
        size: width and height of the result in px; edges are detected at this size
    """
    rgba = picture.convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    fitted = square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1
    strength = (compute_edges(pixels[None])[0] * 255).round().to(torch.uint8)
    return Image.fromarray(strength.permute(1, 2, 0).numpy())


def compute_edges(pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return the edge strength in [0, 1] of pictures in [-1, 1], equal in all three channels."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([-1.0, 0.0, 1.0]) / 2
    across = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None].to(pixels)
    channels = F.pad(pixels, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    gradient = F.conv2d(channels, across).norm(dim=1).unflatten(0, (-1, 3))
    return (gradient.amax(dim=1, keepdim=True) / STRONG).clamp(max=1).expand(-1, 3, -1, -1)
