"""Single files of a sample: their bytes, what is in them, and what tells that they have changed."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprompt.runtime.files import file_fault
from imprompt.training.config import Columns
from imprompt.training.samples.sample import Unusable

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Of one file of a sample; a picture of 64 million pixels, uncompressed, has 192 MB."""

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
"""Suffixes, in small letters, of files that are taken for pictures."""

CAPTIONS = ("txt", "caption")
"""Suffixes of files that are taken for captions if `columns.text` names no other; the first that is there."""

NOT_FETCHED = "failed_to_"
"""How img2dataset's "status" of a sample without a picture begins."""


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden: `a/.git/b`, macOS's `._cat.png`.

    Nothing hidden belongs to any kind of data.
    """
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def was_not_fetched(facts: Mapping[str, Any]) -> bool:
    """Whether img2dataset notes that there is no picture: "failed_to_download" or "failed_to_resize".

    Such a sample is none in every kind of data; it is not one that is damaged.

    Args:
        facts: the sample's .json in a tar file, or its row in a table
    """
    return str(facts.get("status")).startswith(NOT_FETCHED)


def caption_suffixes(columns: Columns) -> tuple[str, ...]:
    """List what a caption's file may end in, without the dot; the first that is there is the caption.

    It is the word that `columns.text` names, by default one of CAPTIONS, as it stands or in capitals
    (`IMG_2.TXT`); none if an empty `columns.text` says that there are no captions.
    """
    is_default = columns.text == Columns.model_fields["text"].default
    words = CAPTIONS if is_default else (columns.text,) if columns.text else ()
    return tuple(dict.fromkeys(word for plain in words for word in (plain, plain.upper())))


def no_caption(stem: str, columns: Columns) -> str:
    """Say which file would have been the caption; `stem` is its name without suffix."""
    return f"it has no caption: there is no {stem}.{caption_suffixes(columns)[0]}"


def read_bytes(path: Path) -> bytes:
    """The whole file.

    Raises:
        Unusable: it is not there, cannot be read, is no file or larger than MAX_FILE_BYTES
    """
    if fault := file_fault(path):
        raise Unusable(fault)
    try:
        check_bytes(path.stat().st_size, path.name)
        return path.read_bytes()
    except FileNotFoundError:
        raise Unusable(f"no such file: {path.name}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise Unusable(f"{path.name} cannot be read: {reason}") from error


def check_bytes(size: int, name: str) -> None:
    """Refuse what is too large to be read.

    Raises:
        Unusable: see MAX_FILE_BYTES
    """
    if size > MAX_FILE_BYTES:
        raise Unusable(f"{name} has {size:,} bytes; a file of a sample may have {MAX_FILE_BYTES:,}")


def check_text(text: str) -> str:
    """Return a caption all of whose characters are characters.

    Raises:
        Unusable: JSON's escapes spell half of a surrogate pair
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Unusable("its caption holds half of a surrogate pair, which is no character")
    return text


def caption(data: bytes) -> str:
    """Text without the white space around it; UTF-8, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Unusable("its caption is not UTF-8") from None


def face_embedding(data: bytes) -> np.ndarray:
    """A face embedding from a .npy file, or from an array or tensor that torch.save wrote: "d", float32.

    Pickles go through PyTorch's restricted loader: arrays and tensors only.

    Raises:
        Unusable: neither, or no single vector of finite numbers
    """
    try:
        return vector(
            np.load(BytesIO(data), allow_pickle=False) if data.startswith(b"\x93NUMPY") else _torch_file(data)
        )
    except Unusable:
        raise
    except Exception as error:  # a foreign file may make a decoder fail in any way
        raise Unusable("its face embedding is neither a .npy file nor what torch.save writes") from error


def vector(values: object) -> np.ndarray:
    """One vector of finite numbers, float32; leading axes of length 1 are dropped.

    Raises:
        Unusable: something else
    """
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise Unusable("its face embedding is no list of numbers") from None
    if array.ndim == 0 or array.size == 0 or array.size != array.shape[-1]:
        raise Unusable(f"its face embedding has the shape {array.shape}; it must be one vector")
    if not np.isfinite(array).all():
        raise Unusable("its face embedding holds numbers that are not finite")
    return array.reshape(-1)


def _torch_file(data: bytes) -> object:
    with torch.serialization.safe_globals(list(_array_parts())):
        loaded = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    return loaded.float().numpy() if isinstance(loaded, torch.Tensor) else loaded


def _array_parts() -> Iterator[Any]:
    """What a pickled array is put together from; nothing else may be."""
    yield np.ndarray
    yield np.dtype
    yield np.ndarray.__reduce__(np.zeros(0))[0]
    yield from (type(np.dtype(kind)) for kind in ("float16", "float32", "float64"))


def fingerprint(words: Iterable[object]) -> str:
    """SHA-256 of the words, in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(repr(word).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; zeros if there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    return 0, 0
