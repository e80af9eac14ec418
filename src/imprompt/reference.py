"""What a user asks of one image prompt."""

import math
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imprompt.attention.layer_weights import Convention, Layers
from imprompt.errors import InvalidReference
from imprompt.inputs.crop import Crop, Noise, check_crop, check_noise
from imprompt.inputs.embeddings import Combine, ImageEmbeddings, load_embeddings
from imprompt.inputs.image import ImagePrompt, load_image
from imprompt.runtime.settings import normalize_spelling

Scaling = Literal["value", "key and value", "key and mean value"]
"""Where λ goes, see `Reference.scaling`."""

Axis = Literal["steps", "noise"]
"""What the start and end of `Reference.steps` are fractions of."""

MAX_IMAGES = 1000
"""Pictures of one reference: they stand side by side in every layer, 4 tokens each or more."""

Pictures = ImagePrompt | Sequence[ImagePrompt]
Mask = ImagePrompt | Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture, or several as one prompt, and how they act.

    Several pictures in one reference share one softmax: their tokens stand side by side, as in diffusers. To
    let pictures act each with settings of its own, use several references.

    Args:
        images: a file, a PIL picture or an array (height width 3, uint8); or a sequence of these; or what
            encoders made of them: `ImageEmbeddings`, a file of these (.safetensors), or a tensor, image or
            face embeddings "images embedding_dim" or features "images patches feature_dim"
        scale: λ. 0 is the base model, 1 the full image prompt; larger and negative values are allowed
        layers: where it acts: "full", another mode of `imprompt.attention.layer_weights`, or a
            multiplier of λ for parts of the U-Net; parts that are not named are off
        convention: whose sets the modes in `layers` are
        boost: how strongly the layers of a "precise" mode push away from the picture; λ if not given
        steps: when it acts: (start, end) from 0 to 1, the end itself not included; or a list with a
            multiplier of λ for every step that the sampler makes, or, for samplers of second order, for every
            call of the denoiser. Image-to-image makes fewer steps than it is asked for, by its strength
        measured_in: what start and end are fractions of: "steps" (step i of N starts at i / N), or "noise"
            (1 - t / (T - 1), t the timestep of T in training)
        mask: where it acts: a picture (white: fully, black: not at all) or a tensor "height width" from 0 to
            1. It covers the whole picture, whatever its own proportions
        crop: what of a picture the encoder sees, see `imprompt.inputs.crop`; "tiles": everything, a
            square at a time, each acting on its own part of the picture
        negative: picture or embeddings to stand on the negative branch of guidance, instead of "no image"
        noise: (kind, amount), the amount from 0 to 1: a copy of each picture, spoiled so by
            `imprompt.noise_image`, stands on the negative branch
        combine: what becomes of several pictures, see `imprompt.inputs.embeddings.combine_embeddings`
        weights: one for each picture, for the ways of combining that take them
        without: words for what shall not be taken from the picture: their text embedding is subtracted from
            the image embedding (InstantStyle, arXiv 2404.02733). The base must have the encoder's text tower
        scaling: "value": Attn(Q, K', λV'), the paper's; "key and value": Attn(Q, λK', λV'); "key and mean
            value": Attn(Q, λK', V' - mean V' + λ mean V'), the mean over tokens
        width_penalty: use λ·C / 1280 for λ in a layer C wide
        face: face embeddings "images 512", for adapters that take them, in place of the face in each picture
        face_scale: strength of the picture's features beside the face embedding (FaceID-PlusV2)
        lora_scale: strength of the LoRA that some face adapters bring

    Raises:
        InvalidReference: a value that is impossible, or one without effect; the message names it
        ImageError, CheckpointError: a mask or an embedding file that cannot be read
    """

    images: Pictures | Tensor | ImageEmbeddings
    _: KW_ONLY
    scale: float | int = 1.0
    layers: Layers = "full"
    convention: Convention = "comfy"
    boost: float | int | None = None
    steps: tuple[float | int, float | int] | list[float | int] = (0.0, 1.0)
    measured_in: Axis = "steps"
    mask: Mask | None = None
    crop: Crop | str = "center"
    negative: Pictures | Tensor | ImageEmbeddings | None = None
    noise: tuple[Noise | str, float | int] | None = None
    combine: Combine | str = "concat"
    weights: Sequence[float | int] | None = None
    without: str = ""
    scaling: Scaling = "value"
    width_penalty: bool = False
    face: Tensor | None = None
    face_scale: float | int = 1.0
    lora_scale: float | int = 1.0

    def __post_init__(self) -> None:
        for name in ("crop", "combine"):
            object.__setattr__(self, name, normalize_spelling(getattr(self, name)))
        for name in ("scale", "face_scale", "lora_scale", *(() if self.boost is None else ("boost",))):
            _check_number(name, getattr(self, name))
        for name, kind in (
            ("convention", Convention),
            ("measured_in", Axis),
            ("scaling", Scaling),
            ("combine", Combine),
        ):
            _check_choice(name, getattr(self, name), get_args(kind))
        object.__setattr__(self, "images", _checked_images(self.images))
        if self.negative is not None:
            object.__setattr__(self, "negative", _checked_images(self.negative))
        if self.noise is not None:
            check_noise(*self.noise, seed=0)
            if self.negative is not None or not self.pictures:
                raise InvalidReference(
                    f"noise={self.noise} needs pictures, and takes the place of a negative"
                )
        if self.mask is not None:
            object.__setattr__(self, "mask", _mask_values(self.mask))
        if self.face is not None:
            _check_embedding(self.face)
        check_crop(self.crop)
        _check_steps(self.steps, self.measured_in)

    @property
    def pictures(self) -> list[ImagePrompt]:
        """The pictures, one or several, as a list; empty if embeddings were given."""
        return as_pictures(self.images)

    @property
    def area(self) -> Tensor | None:
        """The mask as values "height width" from 0 to 1, float32."""
        assert self.mask is None or isinstance(self.mask, Tensor)
        return self.mask

    def weight(self, index: int, count: int, noise: float) -> float:
        """Return what multiplies λ at step `index` of `count`, at noise fraction `noise` (0 at the start).

        Raises:
            InvalidReference: a list of multipliers for another number of steps
        """
        if isinstance(self.steps, list):
            if len(self.steps) != count:
                raise InvalidReference(f"steps has {len(self.steps)} multipliers; there are {count} steps")
            return float(self.steps[index])
        start, end = self.steps
        position = index / count if self.measured_in == "steps" else noise
        return float(start <= position + 1e-9 and (position + 1e-9 < end or end == 1))

    @property
    def is_scheduled(self) -> bool:
        """Whether it does not act alike at every step."""
        return self.steps != (0, 1)


def as_pictures(images: object) -> list[Any]:
    """One picture or several as a list; an empty one for embeddings, and for nothing."""
    if images is None or isinstance(images, Tensor | ImageEmbeddings):
        return []
    if isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview):
        return list(images)
    return [images]


def _checked_images(images: object) -> object:
    """The images as given; a file of embeddings is read."""
    if isinstance(images, str | os.PathLike) and Path(images).suffix == ".safetensors":
        images = load_embeddings(images)
    if isinstance(images, ImageEmbeddings):
        _check_count(images.images)
    elif isinstance(images, Tensor):
        _check_embedding(images)
        _check_count(len(images))
    else:
        _check_pictures(as_pictures(images))
        _check_count(len(as_pictures(images)))
    return images


def _check_count(images: int) -> None:
    if images > MAX_IMAGES:
        raise InvalidReference(
            f"{images:,} pictures are too many for one reference; it may have {MAX_IMAGES:,}: average them, "
            "or take fewer"
        )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InvalidReference(f"{name} must be a finite number, not {value!r}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidReference(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_no_pixels(tensor: Tensor, feature_dim: int | None) -> None:
    """Refuse a tensor of pixels in the place of image embeddings.

    One is known by its 3 or 4 colours, on an axis where features have a width, or where they have a number of
    pictures while the width is another or no value is negative, which features never are.

    Args:
        tensor: what was given
        feature_dim: width of the features that the adapter takes; None if it takes none

    Raises:
        InvalidReference: pixels
    """
    shape = tuple(tensor.shape)
    is_first = tensor.ndim in (3, 4) and shape[-3] in (1, 3, 4) and min(shape[-2:]) > 4
    is_last = tensor.ndim in (3, 4) and shape[-1] in (1, 3, 4) and min(shape[-3:-1]) > 4
    is_last = is_last and shape[-1] != feature_dim
    has_no_sign = bool(tensor.any()) and not bool((tensor < 0).any())
    is_other = tensor.ndim == 4 or (shape[0] > 1 and (shape[-1] != feature_dim or has_no_sign))
    if is_last or (is_first and is_other):
        raise InvalidReference(
            f"this tensor of shape {shape} holds pixels, not image embeddings: give the picture as a PIL "
            "image, a file, or an array (height, width, 3) of uint8"
        )


def _check_embedding(embedding: Tensor) -> None:
    if embedding.ndim == 4 or not (embedding.is_floating_point() or embedding.numel() == 0):
        check_no_pixels(embedding, None)
    if embedding.ndim not in (2, 3) or not embedding.is_floating_point() or embedding.numel() == 0:
        raise InvalidReference(
            "an image embedding must be a floating-point tensor of shape (images, embedding_dim) or "
            f"(images, patches, feature_dim), not {tuple(embedding.shape)} of {embedding.dtype}"
        )
    if not embedding.float().isfinite().all():
        raise InvalidReference("the image embedding contains NaN or infinity")


def _check_pictures(pictures: Sequence[object]) -> None:
    if not pictures:
        raise InvalidReference("a reference needs at least one picture; this one is empty")
    for picture in pictures:
        if isinstance(picture, bytes | bytearray | memoryview):
            raise InvalidReference(
                "a picture must be a path, a PIL image or an array, not bytes: open an encoded picture with "
                "PIL.Image.open(io.BytesIO(data))"
            )
        if isinstance(picture, Tensor):
            check_no_pixels(picture, None)
        if not isinstance(picture, str | os.PathLike | Image.Image | np.ndarray):
            kind = type(picture).__name__
            raise InvalidReference(f"a picture must be a path, a PIL image or an array, not {kind}")


def _mask_values(mask: Mask) -> Tensor:
    if not isinstance(mask, Tensor):
        grey = load_image(mask, background=(0, 0, 0)).convert("L")
        mask = torch.from_numpy(np.array(grey)).float() / 255
    if mask.ndim != 2 or mask.numel() == 0:
        raise InvalidReference(f"a mask must have shape (height, width), not {tuple(mask.shape)}")
    values = mask.detach().float().cpu()
    if not bool(((values >= 0) & (values <= 1)).all()):  # NaN too
        raise InvalidReference(f"a mask's values must be from 0 to 1, not {values.min()} to {values.max()}")
    if not values.any():
        raise InvalidReference("the mask is black all over: the reference would have no effect")
    return values


def _check_steps(steps: object, measured_in: Axis) -> None:
    if isinstance(steps, list):
        for weight in steps:
            _check_number("each of steps", weight)
        if not any(steps):
            raise InvalidReference("steps holds no multiplier but 0: the reference would have no effect")
        if measured_in == "noise":
            raise InvalidReference('a list of steps is measured in "steps", not in "noise"')
        return
    if not isinstance(steps, tuple) or len(steps) != 2:
        raise InvalidReference(f"steps must be a pair (start, end) or a list, not {steps!r}")
    for bound in steps:
        _check_number("each of steps", bound)
    start, end = steps
    if not 0 <= start < end <= 1:
        raise InvalidReference(f"steps must be 0 ≤ start < end ≤ 1, not {start} and {end}")
