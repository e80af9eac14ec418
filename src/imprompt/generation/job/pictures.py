"""Settings inside pictures, as `imprompt.save_picture` writes them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.errors import ImageError
from imprompt.inputs.image import open_image
from imprompt.runtime.picture_files import read_settings_text

_NOT_OF_THE_JOB = {"hashes", "versions"}


def has_settings(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a picture with settings of imprompt, which may be damaged."""
    try:
        return _read_text(Path(path)) is not None
    except ImageError:
        return False


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that `save_picture` wrote into a picture.

    Raises:
        ImageError: no such picture, or one that was not written by imprompt
    """
    text = _read_text(Path(path))
    try:
        settings = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{path} holds no settings of imprompt") from error
    if not isinstance(settings, dict):
        raise ImageError(f"{path} holds no settings of imprompt")
    return settings


def _read_text(path: Path) -> str | None:
    with open_image(path) as picture:
        return read_settings_text(picture)


def read_hashes(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return file → hash of its content, from the settings in a picture; empty for early pictures."""
    hashes = settings.get("hashes")
    pairs = hashes.items() if isinstance(hashes, dict) else ()
    return {file: digest for file, digest in pairs if isinstance(digest, str)}


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a picture's settings as a job has them; early ones had one scale for all references."""
    values = {key: value for key, value in settings.items() if key not in _NOT_OF_THE_JOB}
    if "scale" not in values:
        return values
    scale, names = values.pop("scale"), values.get("references", ())
    return {**values, "references": [{"images": name, "scale": scale} for name in names]}
