"""An image → the target that the base learns to draw: resized, cropped, with its size conditions.

Without buckets this is the official script's rule (tencent-ailab/IP-Adapter, tutorial_train.py: torchvision's
Resize(size, bilinear) and CenterCrop(size) on a PIL picture), equal to the last bit:

    resized     the shorter side becomes `size`, the longer int(size · longer / shorter)
    corner      round((resized - target) / 2), halves to the even number, as Python rounds
                (its script for SDXL rounds down, which may move a corner one pixel up or left)

With buckets the target is one of several sizes of about the same area (NovelAI's aspect ratio bucketing), and
the picture is resized until it just covers it, by the same rule.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.errors import ImageError
from imprompt.inputs.image import MAX_PIXELS
from imprompt.training.config import DataSettings

Size = tuple[int, int]
"""Width and height in pixels."""

MASK_TOLERANCE = 0.02
"""Tolerance for the aspect ratio of a mask: rounding when it was made smaller."""


class Target(NamedTuple):
    """An image that the base learns to draw.

    Attributes:
        pixels: -1 to 1
        size_condition: (original height, original width, top, left, height, width) for SDXL: the size before
            resizing, the corner of the crop in resized pixels, and the size of the target
    """

    pixels: Float[Tensor, "3 height width"]
    size_condition: tuple[int, ...]


class CropPlan(NamedTuple):
    """How an image becomes a target: it is resized, then a window is cropped from it."""

    resized: Size
    left: int
    top: int
    target: Size


def make_target(picture: Image.Image, data: DataSettings) -> Target:
    """Resize and crop an upright RGB image; a small one is enlarged, as in the official script.

    Raises:
        ImageError: a picture too thin
    """
    window = plan_crop(picture.size, data)
    width, height = window.target
    original = picture.height, picture.width
    values = torch.from_numpy(np.array(_apply(window, picture.convert("RGB")))).permute(2, 0, 1)
    # In this order, as torchvision's ToTensor and Normalize([0.5], [0.5]) compute it.
    return Target(
        values.float().div(255).sub(0.5).div(0.5), (*original, window.top, window.left, height, width)
    )


def make_mask(mask: Image.Image, picture_size: Size, data: DataSettings) -> Float[Tensor, "1 height width"]:
    """Resize and crop a mask like its image: 0 (black, ignored by the loss) to 1 (white).

    Args:
        mask: any mode, converted to grayscale; any size with the image's aspect ratio
        picture_size: width and height of the picture
        data: the target's size

    Raises:
        ImageError: other proportions than the picture's, or a picture too thin
    """
    proportion = (mask.width * picture_size[1]) / (mask.height * picture_size[0])
    if abs(math.log(proportion)) > MASK_TOLERANCE:
        raise ImageError(
            f"the mask has {mask.width} × {mask.height} pixels, other proportions than its picture's "
            f"{picture_size[0]} × {picture_size[1]}"
        )
    gray = np.array(_apply(plan_crop(picture_size, data), mask.convert("L")))
    return torch.from_numpy(gray)[None].float() / 255


def choose_target_size(width: int, height: int, data: DataSettings) -> Size:
    """Return width and height of the target: the bucket that is nearest in aspect ratio."""
    if not data.buckets:
        return data.size, data.size
    wanted = math.log(width / height)
    return min(list_buckets(data), key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - wanted))


def list_buckets(data: DataSettings) -> list[Size]:
    """Return every target size, (width, height), from the tallest to the widest.

    Sides are multiples of `bucket_step`, areas at most size², none could be longer on one side without being
    larger than that, and none is longer than `longest`.
    """
    if not data.buckets:
        return [(data.size, data.size)]
    area, step = data.size**2, data.bucket_step
    tall = {
        (width, area // width // step * step)
        for width in range(step, data.size + 1, step)
        if area // width // step * step <= data.longest * width
    }
    every = tall | {(height, width) for width, height in tall}
    return sorted(every, key=lambda bucket: bucket[0] / bucket[1])


def plan_crop(picture: Size, data: DataSettings) -> CropPlan:
    """Plan how an image of a given size becomes a target.

    Raises:
        ImageError: so thin that it would have more than MAX_PIXELS before it is cut
    """
    target = choose_target_size(*picture, data)
    resized = _cover(picture, target)
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ImageError(
            f"a picture of {picture[0]} × {picture[1]} pixels is too thin for a target of "
            f"{target[0]} × {target[1]}; cut it first"
        )
    left, top = (round((all_ - part) / 2) for all_, part in zip(resized, target, strict=True))
    return CropPlan(resized, left, top, target)


def _cover(picture: Size, target: Size) -> Size:
    """Return the smallest size of about the image's aspect ratio that covers the target."""
    (width, height), (target_width, target_height) = picture, target
    if target_width * height >= target_height * width:
        return target_width, int(target_width * height / width)
    return int(target_height * width / height), target_height


def _apply(window: CropPlan, picture: Image.Image) -> Image.Image:
    resized = picture.resize(window.resized, Image.Resampling.BILINEAR)
    left, top, (width, height) = window.left, window.top, window.target
    return resized.crop((left, top, left + width, top + height))
