"""Bounds on the names and the structure of a file of tensors, which are checked before the tensors are read.

Without them a small file could occupy a program for hours, by millions of names, by dictionaries in
dictionaries, or by an archive that unpacks to a thousand times its size.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from imprompt.errors import CheckpointError
from imprompt.runtime.files import shorten

MAX_TENSORS = 10_000
"""The largest number of tensors in a file; an SDXL base model has 2,600, an adapter with LoRA 1,400."""

MAX_TENSOR_NAME = 256
"""The largest number of characters in a tensor's name; published names have up to 120."""

MAX_PICKLE_BYTES = 16 * 1024 * 1024
"""The largest size of the index of a torch archive, which is everything but the tensors' values."""

MAX_NESTING = 32
"""The largest depth of nested dictionaries; official adapters have two."""

MAX_UNPACKING = 1.1
"""The largest ratio of unpacked to packed size of an archive: torch.save does not compress."""

_SLACK = 1024 * 1024


def check_names(names: Iterable[str], path: Path | str) -> list[str]:
    """Return the names of a file's tensors, unless they are too many or too long.

    Raises:
        CheckpointError: the names exceed MAX_TENSORS or MAX_TENSOR_NAME
    """
    checked: list[str] = []
    for name in names:
        if len(checked) >= MAX_TENSORS:
            raise CheckpointError(f"{path} holds more than {MAX_TENSORS:,} tensors, so it is no adapter file")
        if len(name) > MAX_TENSOR_NAME:
            raise CheckpointError(
                f"{path} holds a tensor whose name {shorten(name)!r} has {len(name):,} characters; "
                f"the limit is {MAX_TENSOR_NAME}"
            )
        checked.append(name)
    return checked


def check_archive(path: Path) -> None:
    """Refuse a torch archive that would unpack to much more than its size; torch reports a damaged archive.

    Raises:
        CheckpointError: the archive exceeds MAX_UNPACKING or MAX_PICKLE_BYTES
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    size, total = path.stat().st_size, sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKING * size + _SLACK:
        raise CheckpointError(
            f"{path} has {size:,} bytes and would unpack to {total:,}; torch.save does not compress, so "
            "it did not write this file"
        )
    index_bytes = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if index_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} has an index of {index_bytes:,} bytes; that of an adapter has at most "
            f"{MAX_PICKLE_BYTES:,}"
        )
