"""How the square that an image encoder sees is cut from a picture.

    "center"                    the middle square, as in CLIP's own preprocessing
    "top" "bottom"              the square at that end of a tall picture
    "left" "right"              the square at that end of a wide picture
    (x, y)                      the square at a relative position: (0, 0) is top left, (1, 1) is bottom right
    "pad"                       the whole picture, padded with white to a square
    "stretch"                   the whole picture, its longer side squeezed to a square
    "tiles"                     several overlapping squares that cover the picture: see `split_into_tiles`
    "native"                    the image encoder's own way: "center" for CLIP, "stretch" for SigLIP

For a square picture all crops are equal. A crop keeps all of the shorter side, so "top" of a wide
picture is its "center". The spelling "centre" is also accepted.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.errors import InvalidReference
from imprompt.inputs.choices import CropName, Noise
from imprompt.runtime.settings import normalize_spelling

Crop = CropName | tuple[float | int, float | int]
"""A name, or the position (x, y) of the crop window, each from 0 to 1."""

LONGEST_TILED = 4
"""The largest ratio of longer to shorter side of a picture that is cut into tiles."""

MAX_PROPORTION = 16
"""The largest ratio of longer to shorter side. A longer reference is cut to it first. A longer initial
picture, mask or control picture is refused."""

_POSITIONS = {"center": (0.5, 0.5), "top": (0.5, 0), "bottom": (0.5, 1), "left": (0, 0.5), "right": (1, 0.5)}
_WHITE = (255, 255, 255)


class Tile(NamedTuple):
    """A square of a picture, and the area of the picture in which it acts.

    `area` is (left, top, right, bottom), each 0–1 of the picture's width or height.
    """

    picture: Image.Image
    area: tuple[float, float, float, float]


def check_crop(crop: object) -> None:
    """Refuse a value that is no `Crop`.

    Raises:
        InvalidReference: the name is unknown, or the pair is not two numbers from 0 to 1
    """
    if isinstance(crop, str) and normalize_spelling(crop) in get_args(CropName):
        return
    pair = isinstance(crop, tuple) and len(crop) == 2 and all(_is_fraction(number) for number in crop)
    if not pair:
        names = ", ".join(get_args(CropName))
        raise InvalidReference(f"crop must be {names} or a position (x, y) of two numbers 0–1, not {crop!r}")


def encoder_view(picture: Image.Image, size: int, crop: Crop | str = "center") -> Image.Image:
    """Return the square RGB picture, `size` pixels wide, that an encoder sees of a picture.

    Resizing is bicubic. A crop window is cut after the shorter side has become `size`; its position is
    rounded down to whole pixels. "center" is equal to transformers' CLIPImageProcessorPil, bit for bit. A
    picture longer than 16:1 is first cut to that ratio, at the same position. "tiles" of a square picture is
    the picture, and "native" is "center".

    Raises:
        InvalidReference: `crop` is no `Crop`, or is "tiles" for a picture that has several tiles
    """
    check_crop(crop)
    picture = picture.convert("RGB")
    if crop == "pad":
        return _pad(picture, size)
    if crop == "stretch":
        return _resize(picture, size, size)
    if crop == "tiles" and picture.width != picture.height:
        raise InvalidReference(
            f"'tiles' makes several views of a picture of {_format_size(picture)} pixels; view each "
            "tile instead"
        )
    position = _POSITIONS.get(crop, (0.5, 0.5)) if isinstance(crop, str) else crop
    return _cut_window(_resize_shorter_side(picture, size, position), (size, size), position)


def encoder_pixels(
    picture: Image.Image,
    size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop: Crop | str = "center",
) -> Float[Tensor, "3 {size} {size}"]:
    """Return the input of an image encoder: the normalized `encoder_view` of a picture.

    Values are scaled from 0–255 to 0–1 and then to (value - mean) / std per channel.

    Raises:
        InvalidReference: as for `encoder_view`
    """
    square = np.array(encoder_view(picture, size, crop))
    values = torch.from_numpy(square).permute(2, 0, 1).double() / 255
    channels = [torch.tensor(list(x), dtype=torch.float64).view(3, 1, 1) for x in (mean, std)]
    return ((values - channels[0]) / channels[1]).float()


def split_into_tiles(picture: Image.Image) -> list[Tile]:
    """Cover a picture with the fewest overlapping squares, evenly spaced along its longer side.

    There are n = ⌈longer / shorter⌉ squares; a square picture is a single tile. The areas partition the
    picture: every point belongs to the tile with the nearest middle, so a border is in the middle of an
    overlap.

    Raises:
        InvalidReference: the picture is longer than 4:1
    """
    width, height = picture.size
    side, length = sorted(picture.size)
    if length > LONGEST_TILED * side:
        raise InvalidReference(
            f"a picture of {_format_size(picture)} pixels is longer than {LONGEST_TILED}:1; crop it before "
            "tiling"
        )
    starts = _even_starts(length, side)
    middles = [(one + other + side) / 2 / length for one, other in itertools.pairwise(starts)]
    borders = [0.0, *middles, 1.0]
    wide = width > height
    return [
        Tile(
            picture.crop((start, 0, start + side, side) if wide else (0, start, side, start + side)),
            (first, 0.0, last, 1.0) if wide else (0.0, first, 1.0, last),
        )
        for start, (first, last) in zip(starts, itertools.pairwise(borders), strict=True)
    ]


def noise_image(
    picture: Image.Image, kind: Noise | str, amount: float | int, seed: int, *, size: int = 224
) -> Image.Image:
    """Make a negative image of a reference: it has the reference's colors without its content.

    x is the picture, 0–1; a is `amount`; u is uniform noise, 0–1; n is normal noise of deviation 1; u and n
    are drawn per pixel and channel.

        fade        (1 - a) x + a u
        dissolve    u for a fraction a of the pixels, x for the others
        gaussian    x + a n, clipped to 0–1
        shuffle     x(-p + a d(p)) (1 + a (2u - 1)), clipped: rotated by 180°, warped and speckled; d is a
                    smooth random shift of about an eighth of a side

    The four kinds follow IPAdapterNoise of ComfyUI_IPAdapter_plus. Equal arguments give equal pictures.

    Args:
        picture: RGB; the result has the encoder's size, because resizing would average finer noise away
        amount: 0–1; 0 gives the picture itself (rotated, for "shuffle")
        seed: 0 or more
        size: shorter side of the result; `image_size` of the encoder

    Raises:
        InvalidReference: the kind is unknown, the amount is outside 0–1, or the seed is negative
    """
    check_noise(kind, amount, seed)
    values = torch.from_numpy(np.array(_resize_shorter_side(picture.convert("RGB"), size, (0.5, 0.5))))
    values = values.permute(2, 0, 1).float() / 255
    noise = torch.Generator().manual_seed(seed)
    noised = _NOISES[kind](values, amount, noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(noised.permute(1, 2, 0).numpy())


def _fade(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    return (1 - amount) * x + amount * torch.rand(x.shape, generator=noise)


def _dissolve(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    replaced = torch.rand(x.shape[1:], generator=noise) < amount
    return torch.where(replaced, torch.rand(x.shape, generator=noise), x)


def _gaussian(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    return x + amount * torch.randn(x.shape, generator=noise)


def _shuffle(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    shape = list(x.shape[1:])
    coarse = torch.randn(1, 2, 5, 5, generator=noise)
    shift = nn.functional.interpolate(coarse, shape, mode="bicubic")[0].permute(1, 2, 0)
    # In grid_sample p = (x, y) is from -1 to 1, so a side has length 2; -p rotates the picture by 180°.
    point = nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 3, *shape], align_corners=False)
    rotated = nn.functional.grid_sample(
        x[None], amount * shift / 4 - point, padding_mode="reflection", align_corners=False
    )[0]
    return rotated * (1 + amount * (2 * torch.rand(x.shape, generator=noise) - 1))


_NOISES = {"fade": _fade, "dissolve": _dissolve, "gaussian": _gaussian, "shuffle": _shuffle}


def check_noise(kind: str, amount: float | int, seed: int) -> None:
    """Refuse noise that `noise_image` cannot make.

    Raises:
        InvalidReference: the kind is unknown, the amount is outside 0–1, or the seed is negative
    """
    if kind not in _NOISES:
        raise InvalidReference(f"noise must be {', '.join(get_args(Noise))}, not {kind!r}")
    if not _is_fraction(amount):
        raise InvalidReference(f"the amount of noise must be a number from 0 to 1, not {amount!r}")
    if seed < 0:
        raise InvalidReference(f"the seed of noise must be 0 or more, not {seed}")


def _even_starts(length: int, side: int) -> list[int]:
    """Return the starts of tiles of `side` on a line of `length`; the first and last tile touch its ends."""
    gaps = math.ceil(length / side) - 1
    return [(2 * tile * (length - side) + gaps) // (2 * gaps) for tile in range(gaps + 1)] if gaps else [0]


def _resize_shorter_side(
    picture: Image.Image, size: int, position: tuple[float | int, float | int]
) -> Image.Image:
    """Resize to a shorter side of `size`; a very thin picture is cut first, because it would become huge."""
    width, height = picture.size
    thinnest = MAX_PROPORTION * min(width, height)
    picture = _cut_window(picture, (min(width, thinnest), min(height, thinnest)), position)
    # int(), not round(): the rule of transformers' get_resize_output_image_size
    longer = int(size * max(picture.size) / min(picture.size))
    shape = (size, longer) if picture.width <= picture.height else (longer, size)
    return picture.resize(shape, Image.Resampling.BICUBIC)


def _cut_window(
    picture: Image.Image, shape: tuple[int, int], position: tuple[float | int, float | int]
) -> Image.Image:
    """Cut a window of `shape`; its position is the fraction of the free space left of and above it."""
    if picture.size == shape:
        return picture
    left, top = (
        int(fraction * (whole - part))
        for fraction, whole, part in zip(position, picture.size, shape, strict=True)
    )
    return picture.crop((left, top, left + shape[0], top + shape[1]))


def _pad(picture: Image.Image, size: int) -> Image.Image:
    """Resize the longer side to `size`, then paste the picture on the middle of a white square."""
    longer = max(picture.size)
    width, height = (max(1, round(size * side / longer)) for side in picture.size)
    square = Image.new("RGB", (size, size), _WHITE)
    square.paste(_resize(picture, width, height), ((size - width) // 2, (size - height) // 2))
    return square


def _resize(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Resize the longer side first, so that no intermediate picture is large."""
    longer_first = (width, picture.height) if picture.width >= picture.height else (picture.width, height)
    return picture.resize(longer_first, Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def _format_size(picture: Image.Image) -> str:
    return f"{picture.width} × {picture.height}"


def _is_fraction(number: object) -> bool:
    return isinstance(number, float | int) and not isinstance(number, bool) and 0 <= number <= 1
