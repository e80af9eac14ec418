"""Edges of a picture: what the embedded ControlNet is shown, made of any picture by the same rule.

edges = min(1, |∇ picture| / STRONG)        |∇ ·|: Sobel's operator, the largest of the three channels
"""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

STRONG = 0.5
"""A step of this much, of the range from black to white, is as white as an edge can be."""


def edge_picture(picture: Image.Image, size: int = 128) -> Image.Image:
    """The edges of any picture, white on black: the control picture of `imprompt.mini.controlnet()`.

    Args:
        picture: cropped to its middle square; transparent parts count as white
        size: width and height of the result, px; edges are looked for at this size
    """
    rgba = picture.convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    fitted = square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1
    found = (edges(pixels[None])[0] * 255).round().to(torch.uint8)
    return Image.fromarray(found.permute(1, 2, 0).numpy())


def edges(pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Edge strength in [0, 1], the same in all three channels, of pictures in [-1, 1]."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([-1.0, 0.0, 1.0]) / 2
    across = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None].to(pixels)
    channels = F.pad(pixels, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    gradient = F.conv2d(channels, across).norm(dim=1).unflatten(0, (-1, 3))
    return (gradient.amax(dim=1, keepdim=True) / STRONG).clamp(max=1).expand(-1, 3, -1, -1)
