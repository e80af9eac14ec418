"""stub."""

from collections.abc import Callable
from typing import NamedTuple
from PIL import Image
from torch import Tensor


class Face(NamedTuple):
    embedding: Tensor
    crop: Image.Image


FaceEmbedder = Callable[[Image.Image], Tensor | Face]
