"""The public description of one image prompt: its pictures, its strength, and where and when it acts."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imprompt.attention.choices import Axis, Scaling
from imprompt.attention.layer_weights import Convention, Layers
from imprompt.errors import InvalidReference
from imprompt.inputs.choices import MAX_IMAGES, Combine, Noise
from imprompt.inputs.crop import Crop, check_crop, check_noise
from imprompt.inputs.embeddings import ImageEmbeddings, load_embeddings
from imprompt.inputs.image import ImagePrompt, load_image
from imprompt.runtime.settings import normalize_spelling

Pictures = ImagePrompt | Sequence[ImagePrompt]
Mask = ImagePrompt | Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """One image prompt: a picture, or several as one prompt, and where, when and how strongly it acts.

    Several pictures in one reference share one softmax over the tokens of all of them, as in diffusers. To
    give each picture settings of its own, use several references.

    Args:
        images: a file, a PIL picture or an array (height width 3, uint8); or a sequence of these; or
            embeddings: `ImageEmbeddings`, a file of these (.safetensors), or a tensor, which is image or face
            embeddings "images embedding_dim" or features "images patches feature_dim"
        scale: λ. 0 is the base model, 1 the full image prompt; larger and negative values are allowed
        layers: where it acts: "full", another mode of `imprompt.attention.layer_weights`, or a
            factor on λ for parts of the U-Net; parts that are not named are off
        convention: the system whose definitions the modes in `layers` follow
        boost: how strongly the layers of a "precise" mode push away from the picture; λ by default
        start: the fraction of the generation at which it starts to act, from 0 to 1
        end: the fraction at which it stops, above `start` and up to 1; a step that begins at `end` is
            without it
        step_weights: in place of `start` and `end`, a factor on λ for every step that the sampler makes, or,
            for samplers of second order, for every call of the denoiser. Image-to-image makes fewer steps
            than `num_inference_steps`, by its strength
        measured_in: what start and end are fractions of: "steps" (step i of N starts at i / N), or "noise"
            (1 - t / (T - 1), t the timestep of T in training)
        mask: where it acts: a picture (white: fully, black: not at all) or a tensor "height width" from 0 to
            1. It covers the whole picture, whatever its own proportions
        crop: the part of a picture that the encoder sees, see `imprompt.inputs.crop`; by default as its own
            preprocessing has it. With "tiles" it sees
            everything, a square at a time, and each square acts on its own part of the picture
        negative: picture or embeddings for the negative branch of guidance, instead of "no image"
        noise: (kind, amount), the amount from 0 to 1: the negative branch gets a copy of each picture to
            which `imprompt.noise_image` has added noise
        combine: how several pictures are combined, see `imprompt.inputs.embeddings.combine_embeddings`
        weights: a weight for each picture, if `combine` takes weights
        without: words for what the picture should not contribute: their text embedding is subtracted from the
            image embedding (InstantStyle, arXiv 2404.02733). The base must have the encoder's text tower
        scaling: "value": Attn(Q, K', λV'), the paper's; "key and value": Attn(Q, λK', λV'); "key and mean
            value": Attn(Q, λK', V' - mean V' + λ mean V'), the mean over tokens
        width_penalty: use λ·C / 1280 for λ in a layer C wide
        face: face embeddings "images 512", for adapters that take them, in place of the face in each picture
        face_scale: strength of the picture's features relative to the face embedding (FaceID-PlusV2)
        lora_scale: strength of the LoRA that some face adapters have
        steps: deprecated; (start, end), or a list of step weights

    Raises:
        InvalidReference: an impossible value, or one without effect; the message names it
        ImageError, CheckpointError: a mask or an embedding file that cannot be read
    """

    images: Pictures | Tensor | ImageEmbeddings
    _: KW_ONLY
    scale: float | int = 1.0
    layers: Layers = "full"
    convention: Convention = "comfy"
    boost: float | int | None = None
    start: float | int = 0.0
    end: float | int = 1.0
    step_weights: Sequence[float | int] | None = None
    measured_in: Axis = "steps"
    mask: Mask | None = None
    crop: Crop | str = "native"
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
    steps: InitVar[tuple[float | int, float | int] | list[float | int] | None] = None

    def __post_init__(self, steps: object) -> None:
        if steps is not None:
            self._set_steps(steps)
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
        object.__setattr__(self, "images", _load_images(self.images))
        if self.negative is not None:
            object.__setattr__(self, "negative", _load_images(self.negative))
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
        self._check_schedule()

    def _set_steps(self, steps: object) -> None:
        """Read the deprecated argument."""
        message = "Reference(steps=...) is deprecated; use start and end, or step_weights for a list"
        warnings.warn(message, DeprecationWarning, stacklevel=4)
        if (self.start, self.end) != (0, 1) or self.step_weights is not None:
            raise InvalidReference(f"steps={steps!r} is an old name of start and end; leave it out")
        if isinstance(steps, list):
            object.__setattr__(self, "step_weights", steps)
        elif isinstance(steps, tuple) and len(steps) == 2:
            object.__setattr__(self, "start", steps[0])
            object.__setattr__(self, "end", steps[1])
        else:
            raise InvalidReference(f"steps must be a pair (start, end) or a list, not {steps!r}")

    def _check_schedule(self) -> None:
        for name in ("start", "end"):
            _check_number(name, getattr(self, name))
        if not 0 <= self.start < self.end <= 1:
            raise InvalidReference(
                f"start and end must be 0 ≤ start < end ≤ 1, not {self.start} and {self.end}"
            )
        if self.step_weights is None:
            return
        if (self.start, self.end) != (0, 1) or self.measured_in != "steps":
            raise InvalidReference("step_weights replaces start, end and measured_in; leave those out")
        for weight in self.step_weights:
            _check_number("each of step_weights", weight)
        if not any(self.step_weights):
            raise InvalidReference("all step_weights are 0: the reference would have no effect")

    @property
    def pictures(self) -> list[ImagePrompt]:
        """The pictures, one or several, as a list; empty if embeddings were given."""
        return list_pictures(self.images)

    @property
    def area(self) -> Tensor | None:
        """The mask as values "height width" from 0 to 1, float32."""
        assert self.mask is None or isinstance(self.mask, Tensor)
        return self.mask

    def weight(self, index: int, count: int, noise: float) -> float:
        """Return the factor on λ at step `index` of `count`, at noise fraction `noise` (0 at the start).

        Raises:
            InvalidReference: step weights for another number of steps
        """
        if self.step_weights is not None:
            if len(self.step_weights) != count:
                raise InvalidReference(f"there are {len(self.step_weights)} step_weights for {count} steps")
            return float(self.step_weights[index])
        position = (index / count if self.measured_in == "steps" else noise) + 1e-9
        return float(self.start <= position and (position < self.end or self.end == 1))

    @property
    def is_scheduled(self) -> bool:
        """Whether it acts differently at different steps."""
        return (self.start, self.end) != (0, 1) or self.step_weights is not None


def list_pictures(images: object) -> list[Any]:
    """Return one picture or several as a list, which is empty for embeddings and for None."""
    if images is None or isinstance(images, Tensor | ImageEmbeddings):
        return []
    if isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview):
        return list(images)
    return [images]


def _load_images(images: object) -> object:
    """Check the images, and read a file of embeddings."""
    if isinstance(images, str | os.PathLike) and Path(images).suffix == ".safetensors":
        images = load_embeddings(images)
    if isinstance(images, ImageEmbeddings):
        _check_count(images.images)
    elif isinstance(images, Tensor):
        _check_embedding(images)
        _check_count(len(images))
    else:
        _check_pictures(list_pictures(images))
        _check_count(len(list_pictures(images)))
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
    """Refuse a tensor of pixels in place of image embeddings.

    It is recognized by its 3 or 4 colors. They may be on the axis where features have their width. Or they
    are on the axis that counts a batch of features, while the width differs or no value is negative.

    Args:
        tensor: the tensor in question
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
        gray = load_image(mask, background=(0, 0, 0)).convert("L")
        mask = torch.from_numpy(np.array(gray)).float() / 255
    if mask.ndim != 2 or mask.numel() == 0:
        raise InvalidReference(f"a mask must have shape (height, width), not {tuple(mask.shape)}")
    values = mask.detach().float().cpu()
    if not bool(((values >= 0) & (values <= 1)).all()):  # NaN too
        raise InvalidReference(f"a mask's values must be from 0 to 1, not {values.min()} to {values.max()}")
    if not values.any():
        raise InvalidReference("the mask is black all over: the reference would have no effect")
    return values
