"""What floor and ceiling of a score are made of: another's reference, and a light copy of the right one."""

from jaxtyping import Int
from PIL import Image, ImageFilter
from torch import Tensor

SHIFT = 53
"""A shuffled reference is the one this many places on in its gallery."""


def shuffled_place(place: Int[Tensor, " queries"], count: int) -> Int[Tensor, " queries"]:
    """The shuffled references' places in a gallery of two or more."""
    return (place + (SHIFT % count or 1)) % count


def light_copy(picture: Image.Image) -> Image.Image:
    """The same picture a little larger, shifted and softer: what nobody would call another picture."""
    width, height = picture.size
    zoom = 0.94
    matrix = (zoom, 0, 0.05 * width, 0, zoom, 0.01 * height)
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white"
    )
    return moved.filter(ImageFilter.GaussianBlur(width / 100))
