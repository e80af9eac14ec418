"""Settings inside pictures, as `imprompt.save_picture` writes them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngImageFile

from imprompt.errors import ImageError
from imprompt.runtime.files import find_file_fault
from imprompt.runtime.output import SETTINGS_KEY

_NOT_OF_THE_JOB = {"versions"}


def has_settings(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a picture with settings of imprompt, which may be damaged."""
    try:
        with PngImageFile(Path(path)) as picture:  # pyright: ignore[reportArgumentType]
            return SETTINGS_KEY in picture.info
    except Exception:  # as in read_settings
        return False


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that `save_picture` wrote into a picture.

    Raises:
        ImageError: no such picture, or one that was not written by imprompt
    """
    if fault := find_file_fault(path):
        raise ImageError(fault)
    try:
        with PngImageFile(Path(path)) as picture:  # pyright: ignore[reportArgumentType]
            settings = json.loads(picture.info[SETTINGS_KEY])
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # a hostile file may make a decoder fail in any way
        raise ImageError(f"{path} holds no settings of imprompt") from error
    if not isinstance(settings, dict):
        raise ImageError(f"{path} holds no settings of imprompt")
    return settings


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a picture's settings as a job has them; early ones had one scale for all references."""
    values = {key: value for key, value in settings.items() if key not in _NOT_OF_THE_JOB}
    if "scale" not in values:
        return values
    scale, names = values.pop("scale"), values.get("references", ())
    return {**values, "references": [{"images": name, "scale": scale} for name in names]}
