"""Does the text keep its say? The ground behind the drawing, read off a picture's border."""

import numpy as np
from PIL import Image

from imprompt.mini.grounds import GROUNDS, RGB

BORDER_SHARE = 1 / 32
"""Width of the border that is looked at, of the picture's width."""


def border_colour(picture: Image.Image) -> RGB:
    """Median colour of a picture's border, RGB from 0 to 255."""
    pixels = np.asarray(picture.convert("RGB"))
    width = max(round(picture.width * BORDER_SHARE), 1)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[width:-width, width:-width] = True
    red, green, blue = np.median(pixels[~inside], axis=0).round().astype(int).tolist()
    return red, green, blue


def name_ground(colour: RGB) -> str:
    """The nearest of the twelve colour words, by distance in RGB."""
    distances = {name: np.square(np.subtract(rgb, colour)).sum() for name, rgb in GROUNDS.items()}
    return min(distances, key=lambda name: distances[name])
