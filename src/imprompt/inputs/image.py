"""Image prompts: a file, a PIL picture or an array → an upright RGB picture.

Nothing is decoded before the format and the number of pixels in the header have been checked. Color profiles
are not applied: values are taken as sRGB, as in the image encoders' own preprocessing.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imprompt.errors import ImageError
from imprompt.runtime.files import find_file_fault
from imprompt.runtime.foreign_models import first_line

ImagePrompt = str | os.PathLike[str] | Image.Image | np.ndarray
"""A picture as the user passes it; an array is height × width × channels (1, 3 or 4), uint8."""

MAX_PIXELS = 64 * 1024 * 1024
"""The largest number of pixels that is decoded, according to the header."""

_READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
}
_URL = re.compile(r"[a-z][a-z0-9]*://|data:image/", re.IGNORECASE)
_FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
_HEAD = 64
"""Number of bytes at the beginning of a file that identify its format."""
_AVIF = frozenset((b"avif", b"avis"))
_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
"""Brands of the ISO container (ISO/IEC 14496-12, `ftyp`) that hold pictures; others hold videos."""
_UNSCALED_MODES = {"I": "32-bit integer", "F": "floating-point"}


def load_image(source: ImagePrompt, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Return an image prompt as an upright 8-bit RGB picture that shares no memory with `source`.

    EXIF orientation is applied, transparency is composited on `background` (RGB, 0–255), 16-bit gray is
    scaled to 8 bits, and the first frame of an animation is taken.

    Raises:
        ImageError: the file is missing, empty, damaged or of an unknown format, or has more than MAX_PIXELS
    """
    if isinstance(source, str) and is_url(source):
        raise ImageError(
            f"{source} is a URL, and imprompt fetches no URLs: save the picture and pass its file"
        )
    if isinstance(source, Image.Image):
        _check_open(source)
        return _decode(source, str(getattr(source, "filename", "") or "the picture"), background)
    if isinstance(source, np.ndarray):
        return _decode(_convert_array(source), "the array", background)
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(source), background)
    raise ImageError(f"an image prompt is a path, a PIL picture or an array, not {type(source).__name__}")


def is_url(text: str) -> bool:
    """Whether a text is the address of a picture on the network, or a picture in an address, and no path."""
    return _URL.match(text) is not None


def _check_open(picture: Image.Image) -> None:
    """Refuse a picture whose file was closed before its pixels were read, by the end of a `with`."""
    is_file = isinstance(picture, ImageFile)
    if is_file and getattr(picture, "fp", None) is None and getattr(picture, "_im", None) is None:
        name = str(getattr(picture, "filename", "") or "the picture")
        raise ImageError(
            f"the file of {name} is closed and its pixels were never read: call .load() before it is closed, "
            "or pass the path"
        )


def decode_image(data: bytes, name: str, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decode a picture as `load_image` does; messages call it `name`.

    Raises:
        ImageError: the data are empty, damaged or of an unknown format, or have more than MAX_PIXELS
    """
    return _decode(_open_header(BytesIO(data), name), name, background)


def _load_file(path: Path, background: tuple[int, int, int]) -> Image.Image:
    with open_image(path) as picture:
        return _decode(picture, str(path), background)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open a picture's file and read its header; nothing is decoded, and the size is not checked.

    Raises:
        ImageError: the file is missing, empty, or of an unknown format
    """
    if fault := find_file_fault(path):
        raise ImageError(fault)
    try:
        with path.open("rb") as file:
            yield _open_header(file, str(path))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{path} cannot be read: {error}") from error


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with `head` is a picture of a known format; 64 bytes are enough."""
    if head[4:8] == b"ftyp":
        return bool(_brands(head) & (_AVIF | _HEIC))
    magic = next((magic for magic in _READERS if head.startswith(magic)), None)
    return magic is not None and (magic != b"RIFF" or head[8:12] == b"WEBP")


def _open_header(file: BinaryIO | BytesIO, name: str) -> Image.Image:
    """Read the header with the reader of its signature; PIL would try all formats that it knows."""
    head = file.read(_HEAD)
    if not head:
        raise ImageError(f"{name} is empty")
    if not is_picture(head):
        raise ImageError(f"{name} is not a picture: its content is not {_FORMATS}")
    reader = _choose_reader(head, name)
    file.seek(0)
    try:
        return reader(file, name)
    except Exception as error:  # a decoder may fail in any way on a hostile file
        raise ImageError(f"{name} is truncated or damaged: {first_line(error)}") from error


def _choose_reader(head: bytes, name: str) -> type[ImageFile]:
    if head[4:8] == b"ftyp":
        return _avif_reader(name) if _brands(head) & _AVIF else _heic_reader(name)
    return next(reader for magic, reader in _READERS.items() if head.startswith(magic))


def _brands(head: bytes) -> frozenset[bytes]:
    """Return the major brand of an ISO container and its compatible brands, as far as `head` holds them."""
    box = head[: int.from_bytes(head[:4], "big")]
    return frozenset((box[8:12], *(box[start : start + 4] for start in range(16, len(box), 4))))


def _avif_reader(name: str) -> type[ImageFile]:
    try:
        from PIL.AvifImagePlugin import SUPPORTED, AvifImageFile
    except ImportError:  # Pillow before 11.3
        SUPPORTED, AvifImageFile = False, ImageFile
    if not SUPPORTED:
        raise ImageError(
            f"{name} is an AVIF picture, which this Pillow ({PIL.__version__}) cannot read: install 11.3 or "
            "later as its wheels are built (pip install -U pillow), or save the picture as PNG"
        )
    return AvifImageFile


def _heic_reader(name: str) -> type[ImageFile]:
    try:
        from pillow_heif import HeifImageFile  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImageError(
            f"{name} is a HEIC picture: install its reader (pip install pillow-heif), or save it as PNG"
        ) from None
    return HeifImageFile


def _decode(picture: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    _check_size(picture, name)
    try:
        picture.load()
        return _convert_to_rgb(ImageOps.exif_transpose(picture), name, background)
    except ImageError:
        raise
    except Exception as error:  # as in _opened
        raise ImageError(f"{name} is truncated or damaged: {first_line(error)}") from error


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} × {height} pixels; the limit is {MAX_PIXELS} in all, make it smaller"
        )
    if width * height == 0:
        raise ImageError(f"{name} has no pixels")


def _convert_to_rgb(picture: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = _reduce_to_eight_bits(picture)
    if picture.mode in _UNSCALED_MODES:
        kind = _UNSCALED_MODES[picture.mode]
        raise ImageError(f"{name} holds {kind} values of unknown range; save it with 8 or 16 bits a channel")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    canvas = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(canvas, picture.convert("RGBA")).convert("RGB")


def _reduce_to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits (65535 → 255); a PNG's transparent value becomes an alpha channel."""
    values = np.asarray(picture).astype(np.uint32)
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if transparent is not None:
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _convert_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else None
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise ImageError(
            f"an array must be uint8, height × width × 1, 3 or 4 channels, not {array.dtype} {array.shape}"
        )
    if array.size == 0:
        raise ImageError(f"the array has no pixels: its shape is {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if channels == 1 else array))
