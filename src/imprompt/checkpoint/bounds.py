"""How large a file of tensors may be, apart from its tensors; checked before they are read.

Without these a small file can hold a program for hours: names by the million, dictionaries in dictionaries,
an archive that unpacks to a thousand times its size.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from imprompt.errors import CheckpointError
from imprompt.runtime.files import shorten

MAX_TENSORS = 10_000
"""Tensors of a file; a whole SDXL base model has 2,600, an adapter with LoRA 1,400."""

MAX_TENSOR_NAME = 256
"""Characters of a tensor's name; published ones have up to 120."""

MAX_PICKLE_BYTES = 16 * 1024 * 1024
"""Of the part of a torch archive that says what is in it, apart from the tensors' values."""

MAX_NESTING = 32
"""Dictionaries inside one another; official adapters have two."""

MAX_UNPACKING = 1.1
"""How many times its own size an archive may unpack to: torch.save does not compress."""

_SLACK = 1024 * 1024


def check_names(names: Iterable[str], path: Path) -> list[str]:
    """Return the names of a file's tensors, if they are not too many or too long.

    Raises:
        CheckpointError: see MAX_TENSORS and MAX_TENSOR_NAME
    """
    found: list[str] = []
    for name in names:
        if len(found) >= MAX_TENSORS:
            raise CheckpointError(f"{path} holds more than {MAX_TENSORS:,} tensors: it is no adapter file")
        if len(name) > MAX_TENSOR_NAME:
            raise CheckpointError(
                f"{path} holds a tensor whose name {shorten(name)!r} has {len(name):,} characters; "
                f"{MAX_TENSOR_NAME} is the most"
            )
        found.append(name)
    return found


def check_archive(path: Path) -> None:
    """Refuse a torch archive that would unpack to much more than it is; a damaged one is left to torch.

    Raises:
        CheckpointError: see MAX_UNPACKING, MAX_PICKLE_BYTES and MAX_TENSORS
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    size, total = path.stat().st_size, sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKING * size + _SLACK:
        raise CheckpointError(
            f"{path} has {size:,} bytes and would unpack to {total:,}: torch.save does not "
            "compress, so it is no file of it"
        )
    index_bytes = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if index_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} takes {index_bytes:,} bytes to say what is in it; an adapter takes at most "
            f"{MAX_PICKLE_BYTES:,}"
        )
