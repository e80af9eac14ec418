"""The images behind a score's floor and ceiling: another reference, and a light copy of the right one."""

from jaxtyping import Int
from PIL import Image, ImageFilter
from torch import Tensor

SHIFT = 53
"""The shuffled reference of an image is the one this many places later in the gallery."""


def shuffle_places(place: Int[Tensor, " queries"], count: int) -> Int[Tensor, " queries"]:
    """Return the place of the shuffled reference for each place in a gallery of two or more."""
    return (place + (SHIFT % count or 1)) % count


def make_light_copy(picture: Image.Image) -> Image.Image:
    """Return the same picture a little larger, shifted and softer: an almost perfect answer."""
    width, height = picture.size
    zoom = 0.94
    matrix = (zoom, 0, 0.05 * width, 0, zoom, 0.01 * height)
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white"
    )
    return moved.filter(ImageFilter.GaussianBlur(width / 100))
