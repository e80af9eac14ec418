"""What of a picture the encoder sees: one square cut from it, the whole of it, or a row of overlapping tiles.

    "center"                    the middle square, as CLIP's own preprocessing takes it
    "top" "bottom"              the square at that end of a tall picture
    "left" "right"              the square at that end of a wide one
    (x, y)                      where the square stands in its room: (0, 0) top left, (1, 1) bottom right
    "pad"                       the whole picture, made square with white beside it
    "stretch"                   the whole picture, made square by squeezing its longer side
    "tiles"                     several squares that cover it, one view each: see `split_into_tiles`

Of a square picture all of these show the same. A crop keeps all of the shorter side, so "top" of a wide
picture is its "center". The spelling "centre" is also accepted.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.errors import InvalidReference
from imprompt.runtime.settings import normalize_spelling

CropName = Literal["center", "top", "bottom", "left", "right", "pad", "stretch", "tiles"]
Crop = CropName | tuple[float | int, float | int]
"""A name, or the position (x, y) of the crop window, each 0–1."""

Noise = Literal["fade", "dissolve", "gaussian", "shuffle"]
"""How `noise_image` spoils a picture."""

LONGEST_TILED = 4
"""How many times as long as its shorter side a picture may be, to be cut into tiles."""

MAX_PROPORTION = 16
"""How many times as long as its shorter side a picture may be: a longer reference is cut to that first, and a
picture to start from, its mask and a control picture are refused."""

_POSITIONS = {"center": (0.5, 0.5), "top": (0.5, 0), "bottom": (0.5, 1), "left": (0, 0.5), "right": (1, 0.5)}
_WHITE = (255, 255, 255)


class Tile(NamedTuple):
    """A square of a picture, and the part of the picture that it answers for.

    `area` is (left, top, right, bottom), each 0–1 of the picture's width or height.
    """

    picture: Image.Image
    area: tuple[float, float, float, float]


def check_crop(crop: object) -> None:
    """Refuse what is no `Crop`.

    Raises:
        InvalidReference: an unknown name, or a pair that is not two numbers from 0 to 1
    """
    if isinstance(crop, str) and normalize_spelling(crop) in get_args(CropName):
        return
    pair = isinstance(crop, tuple) and len(crop) == 2 and all(_is_share(number) for number in crop)
    if not pair:
        names = ", ".join(get_args(CropName))
        raise InvalidReference(f"crop must be {names} or a position (x, y) of two numbers 0–1, not {crop!r}")


def encoder_view(picture: Image.Image, size: int, crop: Crop | str = "center") -> Image.Image:
    """Return the square RGB picture, `size` pixels wide, that an encoder sees of a picture.

    Resizing is bicubic. A crop window is cut after the shorter side has become `size`, its position rounded
    down to whole pixels; "center" is equal to transformers' CLIPImageProcessorPil, bit for bit. A picture
    longer than 16:1 is first cut to that, at the same position. A tile is square, so of a tile "tiles" is the
    tile.

    Raises:
        InvalidReference: no `Crop`, or "tiles" for a picture that is not square and so has several views
    """
    check_crop(crop)
    picture = picture.convert("RGB")
    if crop == "pad":
        return _padded(picture, size)
    if crop == "stretch":
        return _resized(picture, size, size)
    if crop == "tiles" and picture.width != picture.height:
        raise InvalidReference(
            f"'tiles' makes several views of a picture of {_shape(picture)} pixels; view each tile instead"
        )
    position = _POSITIONS.get(crop, (0.5, 0.5)) if isinstance(crop, str) else crop
    return _window(_shorter_side(picture, size, position), (size, size), position)


def encoder_pixels(
    picture: Image.Image,
    size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop: Crop | str = "center",
) -> Float[Tensor, "3 {size} {size}"]:
    """Return a picture as an image encoder's input: what `encoder_view` shows, normalised.

    Values go from 0–255 to 0–1 and then to (value - mean) / std per channel.

    Raises:
        InvalidReference: as `encoder_view`
    """
    square = np.array(encoder_view(picture, size, crop))
    values = torch.from_numpy(square).permute(2, 0, 1).double() / 255
    channels = [torch.tensor(list(x), dtype=torch.float64).view(3, 1, 1) for x in (mean, std)]
    return ((values - channels[0]) / channels[1]).float()


def split_into_tiles(picture: Image.Image) -> list[Tile]:
    """Cover a picture with as few overlapping squares as will do, evenly spaced along its longer side.

    n = ⌈longer / shorter⌉ squares; a square picture is its own single tile. The areas partition the picture:
    every point belongs to the tile whose middle is nearest, so a border lies in the middle of an overlap.

    Raises:
        InvalidReference: a picture longer than 4:1
    """
    width, height = picture.size
    side, length = sorted(picture.size)
    if length > LONGEST_TILED * side:
        raise InvalidReference(
            f"a picture of {_shape(picture)} pixels is longer than {LONGEST_TILED}:1; crop it before tiling"
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
    """Make a negative image of a reference: its colours without its content, to be pushed away from.

    x: the picture, 0–1; a: `amount`; u: uniform noise, 0–1; n: normal noise, deviation 1; per pixel and
    channel

        fade        (1 - a) x + a u
        dissolve    u for a share a of the pixels, x for the others
        gaussian    x + a n, cut off at 0 and 1
        shuffle     x(-p + a d(p)) (1 + a (2u - 1)), cut off: turned by 180°, warped and speckled; d is a
                    smooth random shift, about an eighth of a side

    After the four of ComfyUI_IPAdapter_plus' IPAdapterNoise. The same arguments give the same picture.

    Args:
        picture: RGB; the result is as large as the encoder sees it, for finer noise would be averaged away
        amount: 0–1; 0 is the picture itself (of "shuffle": turned)
        seed: 0 or more
        size: shorter side of the result; `image_size` of the encoder

    Raises:
        InvalidReference: an unknown kind, an amount outside 0–1, a negative seed
    """
    check_noise(kind, amount, seed)
    values = torch.from_numpy(np.array(_shorter_side(picture.convert("RGB"), size, (0.5, 0.5))))
    values = values.permute(2, 0, 1).float() / 255
    noise = torch.Generator().manual_seed(seed)
    spoilt = _SPOIL[kind](values, amount, noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(spoilt.permute(1, 2, 0).numpy())


def _fade(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    return (1 - amount) * x + amount * torch.rand(x.shape, generator=noise)


def _dissolve(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    gone = torch.rand(x.shape[1:], generator=noise) < amount
    return torch.where(gone, torch.rand(x.shape, generator=noise), x)


def _gaussian(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    return x + amount * torch.randn(x.shape, generator=noise)


def _shuffle(x: Tensor, amount: float | int, noise: torch.Generator) -> Tensor:
    shape = list(x.shape[1:])
    coarse = torch.randn(1, 2, 5, 5, generator=noise)
    shift = nn.functional.interpolate(coarse, shape, mode="bicubic")[0].permute(1, 2, 0)
    # Of grid_sample: p = (x, y) from -1 to 1, so a side is 2 long; -p is the picture turned by 180°.
    point = nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 3, *shape], align_corners=False)
    turned = nn.functional.grid_sample(
        x[None], amount * shift / 4 - point, padding_mode="reflection", align_corners=False
    )[0]
    return turned * (1 + amount * (2 * torch.rand(x.shape, generator=noise) - 1))


_SPOIL = {"fade": _fade, "dissolve": _dissolve, "gaussian": _gaussian, "shuffle": _shuffle}


def check_noise(kind: str, amount: float | int, seed: int) -> None:
    """Refuse what `noise_image` does not make.

    Raises:
        InvalidReference: an unknown kind, an amount outside 0–1, a negative seed
    """
    if kind not in _SPOIL:
        raise InvalidReference(f"noise must be {', '.join(get_args(Noise))}, not {kind!r}")
    if not _is_share(amount):
        raise InvalidReference(f"the amount of noise must be a number from 0 to 1, not {amount!r}")
    if seed < 0:
        raise InvalidReference(f"the seed of noise must be 0 or more, not {seed}")


def _even_starts(length: int, side: int) -> list[int]:
    """Where tiles of `side` start on a line of `length` so that first and last touch its ends."""
    gaps = math.ceil(length / side) - 1
    return [(2 * tile * (length - side) + gaps) // (2 * gaps) for tile in range(gaps + 1)] if gaps else [0]


def _shorter_side(picture: Image.Image, size: int, position: tuple[float | int, float | int]) -> Image.Image:
    """Resize so that the shorter side is `size`; a hair-thin picture is cut first, or it would grow huge."""
    width, height = picture.size
    thinnest = MAX_PROPORTION * min(width, height)
    picture = _window(picture, (min(width, thinnest), min(height, thinnest)), position)
    # int(), not round(): the rule of transformers' get_resize_output_image_size
    longer = int(size * max(picture.size) / min(picture.size))
    shape = (size, longer) if picture.width <= picture.height else (longer, size)
    return picture.resize(shape, Image.Resampling.BICUBIC)


def _window(
    picture: Image.Image, shape: tuple[int, int], position: tuple[float | int, float | int]
) -> Image.Image:
    """Cut a window of `shape` whose corner is that share of the room to the right and down."""
    if picture.size == shape:
        return picture
    left, top = (
        int(at * (all_ - part)) for at, all_, part in zip(position, picture.size, shape, strict=True)
    )
    return picture.crop((left, top, left + shape[0], top + shape[1]))


def _padded(picture: Image.Image, size: int) -> Image.Image:
    """Make the longer side `size`, then lay the picture on the middle of a white square."""
    longer = max(picture.size)
    width, height = (max(1, round(size * side / longer)) for side in picture.size)
    square = Image.new("RGB", (size, size), _WHITE)
    square.paste(_resized(picture, width, height), ((size - width) // 2, (size - height) // 2))
    return square


def _resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Resize the longer side, then the shorter: the same for upright and lying, and never large."""
    longer_first = (width, picture.height) if picture.width >= picture.height else (picture.width, height)
    return picture.resize(longer_first, Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def _shape(picture: Image.Image) -> str:
    return f"{picture.width} × {picture.height}"


def _is_share(number: object) -> bool:
    return isinstance(number, float | int) and not isinstance(number, bool) and 0 <= number <= 1
