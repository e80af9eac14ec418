"""The files of a sample: their bytes, their content, and how a change of them is noticed."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprompt.runtime.files import find_file_fault
from imprompt.training.config import Columns
from imprompt.training.samples.sample import Unusable

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Largest file of a sample; an uncompressed image of 64 million pixels has 192 MB."""

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
"""Suffixes of image files, in lower case."""

CAPTIONS = ("txt", "caption")
"""Suffixes of caption files if `columns.text` names no other, in the order of preference."""

NOT_FETCHED = "failed_to_"
"""Beginning of img2dataset's "status" of a sample without an image."""


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder above it, is hidden: `a/.git/b`, macOS's `._cat.png`.

    Hidden files belong to no kind of data.
    """
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def is_not_fetched(facts: Mapping[str, Any]) -> bool:
    """Whether img2dataset recorded no image: "failed_to_download" or "failed_to_resize".

    Such a sample is skipped in every kind of data; it does not count as damaged.

    Args:
        facts: the sample's .json in a tar file, or its row in a table
    """
    return str(facts.get("status")).startswith(NOT_FETCHED)


def list_caption_suffixes(columns: Columns) -> tuple[str, ...]:
    """Return the suffixes of a caption file, without the dot, in the order of preference.

    A suffix is `columns.text`, by default one of CAPTIONS, unchanged or in capitals (`IMG_2.TXT`). There is
    none if `columns.text` is empty, that is, for data without captions.
    """
    is_default = columns.text == Columns.model_fields["text"].default
    words = CAPTIONS if is_default else (columns.text,) if columns.text else ()
    return tuple(dict.fromkeys(word for plain in words for word in (plain, plain.upper())))


def explain_no_caption(stem: str, columns: Columns) -> str:
    """Return which file would have been the caption; `stem` is its name without suffix."""
    return f"it has no caption: there is no {stem}.{list_caption_suffixes(columns)[0]}"


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        Unusable: it is not there, cannot be read, is no file or larger than MAX_FILE_BYTES
    """
    if fault := find_file_fault(path):
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
    """Refuse a file that is too large.

    Raises:
        Unusable: see MAX_FILE_BYTES
    """
    if size > MAX_FILE_BYTES:
        raise Unusable(f"{name} has {size:,} bytes; a file of a sample may have {MAX_FILE_BYTES:,}")


def check_text(text: str) -> str:
    """Return a caption that holds valid characters only.

    Raises:
        Unusable: JSON's escapes spell half of a surrogate pair
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Unusable("its caption holds half of a surrogate pair, which is no character")
    return text


def decode_caption(data: bytes) -> str:
    """Decode UTF-8 text, with or without a byte order mark, and strip white space."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Unusable("its caption is not UTF-8") from None


def read_face_embedding(data: bytes) -> np.ndarray:
    """Read a face embedding, "d", float32, from a .npy file or an array or tensor of torch.save.

    Pickles go through PyTorch's restricted loader: arrays and tensors only.

    Raises:
        Unusable: neither, or no single vector of finite numbers
    """
    try:
        return check_vector(
            np.load(BytesIO(data), allow_pickle=False) if data.startswith(b"\x93NUMPY") else _torch_file(data)
        )
    except Unusable:
        raise
    except Exception as error:  # a foreign file may make a decoder fail in any way
        raise Unusable("its face embedding is neither a .npy file nor what torch.save writes") from error


def check_vector(values: object) -> np.ndarray:
    """Return one vector of finite numbers, float32; leading axes of length 1 are dropped.

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
    """Yield the types of a pickled array; no other type is loaded."""
    yield np.ndarray
    yield np.dtype
    yield np.ndarray.__reduce__(np.zeros(0))[0]
    yield from (type(np.dtype(kind)) for kind in ("float16", "float32", "float64"))


def hash_words(words: Iterable[object]) -> str:
    """Return the SHA-256 of the words, in order, in hexadecimal."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(repr(word).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def file_state(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of change in nanoseconds; zeros if there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    return 0, 0
