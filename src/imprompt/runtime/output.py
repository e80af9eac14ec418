"""Results on disk: a file appears whole or not at all."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprompt.errors import OutputError
from imprompt.runtime.files import name_fault, shorten

if TYPE_CHECKING:
    from PIL import Image

SETTINGS_KEY = "imprompt"
"""Name of the PNG text chunk that holds a picture's settings, as JSON."""


def check_output(path: Path, *suffixes: str) -> None:
    """Refuse, before any work is done, a file name that could not be written or has none of the suffixes.

    Raises:
        OutputError: no file can have the name, the folder is missing or may not be written, or the name
            belongs to something that is no file.
    """
    if fault := name_fault(path):
        raise OutputError(f"{shorten(str(path))} cannot be written: {fault}")
    if suffixes and path.suffix not in suffixes:
        raise OutputError(f"{path} cannot be written: its name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} cannot be written: it is there already and is not a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: the folder {path.parent} is read-only for you")


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; move what is written there to `path` if the block ends well.

    Whatever happens in the block (an error, a full disk, Ctrl-C), `path` holds the old content or the new
    one.

    Raises:
        OutputError: the file cannot be written.
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


def remove_leftovers(folder: Path) -> None:
    """Delete half-written files of killed processes, an hour old, in the subfolders of a folder."""
    for path in folder.glob("*/.imprompt-*.part"):
        with contextlib.suppress(OSError):  # another process was quicker, or the folder is read-only
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def save_picture(picture: "Image.Image", path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write a picture as PNG, with its settings inside; the file appears whole or not at all.

    Args:
        picture: what to write
        path: its name must end in .png
        settings: values that JSON can hold; `imprompt.generation.job.read_settings` gives them back

    Raises:
        OutputError: another suffix, a missing folder, a full disk
    """
    from PIL.PngImagePlugin import PngInfo  # not at the start of every command

    path = Path(path)
    check_output(path, ".png")
    text = PngInfo()
    text.add_text(SETTINGS_KEY, json.dumps(settings))
    with write_atomically(path) as part:
        picture.save(part, format="PNG", pnginfo=text)
