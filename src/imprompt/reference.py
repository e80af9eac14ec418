"""What a user asks of one image prompt."""

import math
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imprompt.errors import InvalidReference
from imprompt.image import ImagePrompt


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture, or several as one prompt, and how strongly they act.

    Several pictures in one reference share one softmax: their tokens stand side by side, as in diffusers. To
    let pictures act each with a strength of its own, use several references.

    Args:
        images: a file, a PIL picture or an array (height width 3, uint8); or a sequence of these; or image
            embeddings already computed, "images embedding_dim"
        scale: λ. 0 is the base model, 1 the full image prompt; larger and negative values are allowed

    Raises:
        InvalidReference: no picture, something that is no picture, or a scale that is no finite number
    """

    images: ImagePrompt | Sequence[ImagePrompt] | Tensor
    _: KW_ONLY
    scale: float | int = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, Real) or not math.isfinite(self.scale):
            raise InvalidReference(f"scale must be a finite number, not {self.scale!r}")
        if isinstance(self.images, Tensor):
            _check_embedding(self.images)
        else:
            _check_pictures(self.pictures)

    @property
    def embedding(self) -> Tensor | None:
        """The image embeddings, "images embedding_dim", if that is what was given."""
        return self.images if isinstance(self.images, Tensor) else None

    @property
    def pictures(self) -> list[ImagePrompt]:
        """The pictures, one or several, as a list; empty if embeddings were given."""
        if isinstance(self.images, Tensor):
            return []
        if isinstance(self.images, Sequence) and not isinstance(self.images, str | bytes):
            return list(self.images)
        return [self.images]  # pyright: ignore[reportReturnType]


def _check_embedding(embedding: Tensor) -> None:
    if embedding.ndim != 2 or not embedding.is_floating_point() or embedding.numel() == 0:
        raise InvalidReference(
            "an image embedding must be a floating-point tensor of shape (images, embedding_dim), "
            f"not {tuple(embedding.shape)} of {embedding.dtype}"
        )
    if not torch.isfinite(embedding).all():
        raise InvalidReference("the image embedding contains NaN or infinity")


def _check_pictures(pictures: Sequence[object]) -> None:
    if not pictures:
        raise InvalidReference("a reference needs at least one picture; this one is empty")
    for picture in pictures:
        if not isinstance(picture, str | os.PathLike | Image.Image | np.ndarray):
            kind = type(picture).__name__
            raise InvalidReference(f"a picture must be a path, a PIL image or an array, not {kind}")
