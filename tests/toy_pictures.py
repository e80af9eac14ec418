"""A data set of a few plain shapes, in the layout of `imprompt mini build-data`, for training in seconds."""

from pathlib import Path

import numpy as np

from imprompt.training.emoji import STYLES, Drawing, is_held_out, write_data_set

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "gold": (230, 190, 40)}
SHAPES = ("disc", "box", "bar", "cross", "frame")


def write_toy_data(folder: Path, size: int = 64) -> Path:
    """Every shape in every colour and two styles; some concepts held out by their names' hash, as always."""
    drawings, pictures = [], []
    for icon_set in list(STYLES)[:2]:
        for colour, rgb in COLOURS.items():
            for shape in SHAPES:
                concept = f"{colour} {shape}"
                drawings.append(Drawing(concept, (shape, colour), icon_set, is_held_out(concept)))
                pictures.append(draw(shape, rgb, size))
    assert {drawing.held_out for drawing in drawings} == {True, False}
    write_data_set(folder, drawings, np.stack(pictures))
    return folder


def draw(shape: str, rgb: tuple[int, int, int], size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    masks = {
        "disc": x**2 + y**2 < 0.16,
        "box": np.maximum(abs(x), abs(y)) < 0.35,
        "bar": abs(y) < 0.15,
        "cross": np.minimum(abs(x), abs(y)) < 0.1,
        "frame": (np.maximum(abs(x), abs(y)) < 0.4) & (np.maximum(abs(x), abs(y)) > 0.25),
    }
    picture = np.zeros((size, size, 4), np.uint8)
    picture[masks[shape]] = (*rgb, 255)
    return picture
