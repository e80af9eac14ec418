"""Results on disk: a file is written completely or not at all."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprompt.errors import OutputError
from imprompt.runtime.files import find_name_fault, shorten

if TYPE_CHECKING:
    from PIL import Image

SETTINGS_KEY = "imprompt"
"""Keyword of the PNG text chunk that holds a picture's settings as JSON."""


def check_output(path: Path, *suffixes: str) -> None:
    """Refuse, before any work is done, a path that could not be written or has none of the suffixes.

    Raises:
        OutputError: no file can have the name, the suffix is another one, the folder is missing or read-only,
            or the path exists and is no file
    """
    if fault := find_name_fault(path):
        raise OutputError(f"{shorten(str(path))} cannot be written: {fault}")
    if suffixes and path.suffix not in suffixes:
        raise OutputError(f"{path} cannot be written: its name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} cannot be written: it exists and is not a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: the folder {path.parent} is read-only for you")


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents, if they do not exist; return the folder.

    Raises:
        OutputError: the folder cannot be created
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror or error}") from error
    return folder


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files of killed processes from the subfolders: no write takes an hour."""
    for part in folder.glob("*/.imprompt-*.part"):
        with contextlib.suppress(OSError):  # another process removed it, or the folder is read-only
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds.

    Whatever happens in the block (an error, a full disk, Ctrl-C), `path` holds either the old content or the
    new one.

    Raises:
        OutputError: the file cannot be written
    """
    check_output(path)
    part = path.with_name(f".imprompt-{secrets.token_hex(6)}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def write_if_changed(path: Path, data: bytes) -> None:
    """Write a file atomically; one with the same content stays untouched, as its folder may be read-only.

    Raises:
        OutputError: the file cannot be written
    """
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with write_atomically(path) as part:
        part.write_bytes(data)


def save_picture(picture: "Image.Image", path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write a picture and its settings as PNG, atomically.

    Args:
        picture: the picture
        path: its name must end in .png
        settings: values that JSON can represent; `imprompt.generation.job.read_settings` reads them

    Raises:
        OutputError: the suffix is another one, the folder is missing, or the disk is full
    """
    from PIL.PngImagePlugin import PngInfo  # imported late, so that commands start quickly

    path = Path(path)
    check_output(path, ".png")
    text = PngInfo()
    text.add_text(SETTINGS_KEY, json.dumps(settings))
    with write_atomically(path) as part:
        picture.save(part, format="PNG", pnginfo=text)
