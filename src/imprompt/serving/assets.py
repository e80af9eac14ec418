"""Pictures that clients send: checked, stored once, and named by a hash of their content in requests."""

import asyncio
import base64
import binascii
import hashlib
import io
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from imprompt.errors import ImageError, OutputError
from imprompt.inputs.image import decode_image
from imprompt.runtime.output import write_if_changed
from imprompt.serving.settings import Limits

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""The formats that are accepted; a decoder that nobody needs is only a risk."""

_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"RIFF", "WEBP"))
_DATA_URI = "data:"
_SHOWN = 40


@dataclass(frozen=True)
class Asset:
    """A picture that is stored.

    Args:
        id: SHA-256 of its bytes, in hexadecimal digits
        path: its file
        width: in pixels
        height: in pixels
        bytes: the size of the file
    """

    id: str
    path: Path
    width: int
    height: int
    bytes: int


class UnknownAsset(ImageError):
    """There is no such picture, or it was dropped to make room; send it again."""


class AssetStore:
    """The pictures of all clients, in one folder; the least recently used leave when there are too many.

    Args:
        folder: an existing folder
        limits: the most bytes and pixels of one, and the most bytes of all
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self._limits = folder, limits
        self._assets: dict[str, Asset] = {}
        self._holds: Counter[str] = Counter()
        self._lock = threading.Lock()

    async def add(self, data: bytes, name: str = "the picture") -> Asset:
        """Check a picture, decode it once, and store it.

        Raises:
            ImageError: too large, of another format, damaged, or not decoded in time
        """
        check_header(data, name, self._limits)
        seconds = self._limits.decode_seconds
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.to_thread(self._store, data, name)
        except TimeoutError:
            raise ImageError(f"{name} was not decoded in {seconds:g} s; send a smaller one") from None

    def add_now(self, data: bytes, name: str) -> Asset:
        """Check and store a picture, in this thread.

        Raises:
            ImageError: as `add`
        """
        check_header(data, name, self._limits)
        return self._store(data, name)

    def _store(self, data: bytes, name: str) -> Asset:
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            if (known := self._assets.pop(digest, None)) is not None:
                self._assets[digest] = known
                return known
        picture = decode_image(data, name)
        path = self.folder / f"{digest}{_SUFFIXES[find_format(data)]}"
        try:
            write_if_changed(path, data)
        except OutputError as error:
            raise ImageError(f"{name} cannot be stored: the server's disk is full") from error
        with self._lock:
            self._assets[digest] = asset = Asset(digest, path, *picture.size, len(data))
            self._drop_old()
        return asset

    def find(self, name: str) -> Asset:
        """Return an asset by its id.

        Raises:
            UnknownAsset: there is none
        """
        with self._lock:
            asset = self._assets.pop(name, None)
            if asset is not None:
                self._assets[name] = asset
                return asset
        raise UnknownAsset(
            f"there is no picture {name[:_SHOWN]!r} here (any more); send it to /api/assets again"
        )

    @contextmanager
    def hold(self, ids: Iterable[str]) -> Iterator[None]:
        """Keep pictures inside this context, whatever room is needed."""
        kept = list(ids)
        with self._lock:
            self._holds.update(kept)
        try:
            yield
        finally:
            with self._lock:
                self._holds.subtract(kept)
                self._holds += Counter()
                self._drop_old()

    def _drop_old(self) -> None:
        most = self._limits.assets_megabytes * 1e6
        total = sum(asset.bytes for asset in self._assets.values())
        for asset in list(self._assets.values())[:-1]:
            if total <= most:
                return
            if not self._holds[asset.id]:
                total -= asset.bytes
                del self._assets[asset.id]
                asset.path.unlink(missing_ok=True)


def find_format(data: bytes) -> str:
    """Return PNG, JPEG or WEBP by a file's first bytes; "" for any other format."""
    return next((name for magic, name in _SIGNATURES if data.startswith(magic)), "")


def check_header(data: bytes, name: str, limits: Limits) -> None:
    """Refuse a picture by its size, its first bytes and its header; nothing is decoded.

    Raises:
        ImageError: too many bytes or pixels, another format, or a damaged header
    """
    if len(data) > limits.picture_megabytes * 1e6:
        raise ImageError(f"{name} has {len(data):,} bytes; it may have {limits.picture_megabytes:g} million")
    kind = find_format(data)
    if not kind:
        raise ImageError(f"{name} is no PNG, JPEG or WebP picture")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            pixels = picture.width * picture.height
    except Exception as error:  # a decoder may fail in any way on a hostile file
        raise ImageError(f"{name} is truncated or damaged") from error
    if not 0 < pixels <= limits.picture_megapixels * 1e6:
        raise ImageError(
            f"{name} has {pixels:,} pixels; it may have {limits.picture_megapixels:g} million: shrink it"
        )


def is_data(text: str) -> bool:
    """Whether a text is a picture in a data: URI, not the id of one."""
    return text.startswith(_DATA_URI)


def decode_data(text: str, name: str = "the picture", *, limits: Limits) -> bytes:
    """Decode base64, with or without "data:...;base64," before it; its length is checked first.

    Raises:
        ImageError: no base64, or too much of it
    """
    head, comma, body = text.partition(",") if is_data(text) else ("", ",", text)
    if not comma or (head and not head.endswith(";base64")):
        raise ImageError(f"{name} must be base64, or a data: URI with base64")
    if len(body) * 3 / 4 > limits.picture_megabytes * 1e6 + 4:
        raise ImageError(f"{name} has more than {limits.picture_megabytes:g} million bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} is not valid base64") from error


def store_mask(mask: Image.Image, assets: AssetStore) -> str:
    """Store a gray picture as a mask, and return its id."""
    file = io.BytesIO()
    mask.save(file, "PNG")
    return assets.add_now(file.getvalue(), "mask").id
