"""Does the text keep its say? The ground behind the drawing, read off a picture's border."""

import numpy as np
from PIL import Image

RGB = tuple[int, int, int]

GROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "grey": (150, 152, 156),
    "red": (224, 62, 54),
    "orange": (246, 150, 58),
    "yellow": (252, 222, 92),
    "green": (92, 182, 96),
    "cyan": (110, 214, 222),
    "blue": (72, 120, 224),
    "purple": (148, 92, 204),
    "pink": (248, 162, 196),
    "brown": (136, 94, 66),
}
"""Colour word → RGB, as the embedded model's captions mean them (held to them by a test)."""

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
