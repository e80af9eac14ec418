"""The held-out drawings as two small files: what the evaluation ships with, so that it needs no data set.

python -m imprompt.training.held_out ~/.cache/imprompt/emoji-64 src/imprompt/evaluation/held_out
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imprompt.training.emoji import load_data

COLUMNS = 32
"""Drawings in a row of the sheet."""

COMPARED_SIZE = 32
"""Side at which drawings are compared with those of the training split, in pixels."""


def write_held_out(data: Path, folder: Path) -> int:
    """Write every held-out drawing of a data set to `drawings.webp` and `drawings.jsonl`; return how many.

    The sheet holds them row by row, lossless, with their alpha. The table has a line for each, in the same
    order: concept, style, and `nearest`, the distance to the most similar training drawing (on white, root
    mean square of 255): flags of different places can be the same flag.
    """
    pictures, drawings = load_data(data)
    held_out = np.array([drawing.held_out for drawing in drawings])
    nearest = nearest_distances(thumbnails(pictures[held_out]), thumbnails(pictures[~held_out]))
    folder.mkdir(parents=True, exist_ok=True)
    sheet(pictures[held_out]).save(folder / "drawings.webp", lossless=True, method=4)
    kept = [drawing for drawing in drawings if drawing.held_out]
    lines = [
        {"concept": drawing.concept, "style": drawing.style, "nearest": round(distance, 1)}
        for drawing, distance in zip(kept, nearest.tolist(), strict=True)
    ]
    (folder / "drawings.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    return len(kept)


def sheet(pictures: UInt8[np.ndarray, "drawings size size 4"]) -> Image.Image:
    """Drawings side by side, `COLUMNS` in a row; colours under full transparency are black."""
    count, size = pictures.shape[:2]
    rows = -(-count // COLUMNS)
    cells = np.zeros((rows * COLUMNS, size, size, 4), np.uint8)
    cells[:count] = pictures * (pictures[..., 3:] > 0)
    grid = cells.reshape(rows, COLUMNS, size, size, 4).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(np.ascontiguousarray(grid.reshape(rows * size, COLUMNS * size, 4)))


def thumbnails(pictures: UInt8[np.ndarray, "drawings size size 4"]) -> Float[Tensor, "drawings values"]:
    """Drawings on white, small, flattened, in [0, 255]."""
    pieces = []
    for start in range(0, len(pictures), 1024):
        rgba = torch.from_numpy(pictures[start : start + 1024]).permute(0, 3, 1, 2).float()
        alpha = rgba[:, 3:] / 255
        on_white = alpha * rgba[:, :3] + (1 - alpha) * 255
        pieces.append(F.interpolate(on_white, size=COMPARED_SIZE, mode="area").flatten(1))
    return torch.cat(pieces)


def nearest_distances(
    ours: Float[Tensor, "drawings values"], others: Float[Tensor, "others values"]
) -> Float[Tensor, " drawings"]:
    """Root mean square distance from each to the nearest of the others."""
    return torch.cdist(ours, others).amin(dim=1) / ours.shape[1] ** 0.5


if __name__ == "__main__":
    print(write_held_out(Path(sys.argv[1]).expanduser(), Path(sys.argv[2])))
