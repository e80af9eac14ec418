"""Grids of images in one image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

GAP = 2


def picture_grid(rows: Sequence[Sequence[Image.Image | Tensor]], *, zoom: int = 1) -> Image.Image:
    """Arrange rows in one image; cells are PIL images or tensors of shape (3, height, width) in [-1, 1]."""
    pictures = [[as_picture(cell) if isinstance(cell, Tensor) else cell for cell in row] for row in rows]
    width, height = pictures[0][0].size
    step_x, step_y = width * zoom + GAP, height * zoom + GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * step_x - GAP, len(rows) * step_y - GAP), "white")
    for y, row in enumerate(pictures):
        for x, cell in enumerate(row):
            enlarged = cell.resize((width * zoom, height * zoom), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (x * step_x, y * step_y))
    return sheet


def as_picture(pixels: Tensor) -> Image.Image:
    """Convert a tensor of shape (3, height, width) in [-1, 1] to an image."""
    values = (pixels.detach().cpu().clamp(-1, 1).permute(1, 2, 0) + 1) * 127.5
    return Image.fromarray(values.round().numpy().astype(np.uint8))


def thumbnails_to_images(thumbnails: Tensor) -> list[Image.Image]:
    """Convert thumbnails, uint8 "images height width 3", to images."""
    return [Image.fromarray(picture.numpy()) for picture in thumbnails]
