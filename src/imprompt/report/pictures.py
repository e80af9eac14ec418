"""Pictures inside a page: data URIs, no larger than there is room for."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

_SIDES = (1600, 1280, 1024, 832, 640, 512, 400, 320, 240, 160, 96)
_QUALITIES = (84, 68)


@dataclass(frozen=True)
class Embedded:
    """A picture inside a page; `source` is a data URI, the size is the picture's before, in pixels."""

    source: str
    width: int
    height: int


def embed(picture: Image.Image, room: int) -> Embedded:
    """The picture as a JPEG of at most `room` bytes, if that can be."""
    return Embedded(data_uri(as_jpeg(picture.convert("RGB"), room), "jpeg"), *picture.size)


def data_uri(data: bytes, kind: str) -> str:
    """An image file of that kind, "png" or "jpeg", as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def as_jpeg(picture: Image.Image, room: int) -> bytes:
    """The picture as a JPEG of at most `room` bytes: as large as fits; the smallest we make if none does."""
    data = b""
    largest = min(max(picture.size), _SIDES[0])
    for side in (largest, *(side for side in _SIDES if side < largest)):
        smaller = picture.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            file = io.BytesIO()
            smaller.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
            data = file.getvalue()
            if len(data) <= room:
                return data
    return data
