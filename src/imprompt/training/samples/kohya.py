"""The metadata of kohya's scripts, `meta_cap.json` or `meta_lat.json` (sd-scripts, finetune/): a JSON object.

    {"cat": {"caption": "a cat", "tags": "cat, sitting"}, "/photos/dog.png": {"caption": "a dog"}}

A key is a picture's path, or its name without suffix. As in kohya's training, the text is the caption
followed by the tags; `columns.text = "caption"` or "tags" selects one of them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.errors import DataError
from imprompt.training.samples.files import PICTURES

CAPTION, TAGS = "caption", "tags"


def read_metadata(entries: Mapping[str, object], table: Path, root: Path) -> list[dict[str, Any]]:
    """Return table rows with the columns image, text, caption and tags, as far as an entry has them.

    Args:
        entries: content of the file
        table: the file, for messages
        root: folder at which the paths begin

    Raises:
        DataError: an entry is no object
    """
    pictures = _Pictures(root)
    rows: list[dict[str, Any]] = []
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise DataError(
                f'{table}: the entry of {key!r} must be an object like {{"caption": "a cat"}}, as kohya\'s '
                'scripts write it; or write a list of objects like {"image": "cat.png", "text": "a cat"}'
            )
        rows.append({**entry, **_text(entry), "image": pictures.find(key)})
    return rows


def _text(entry: Mapping[str, Any]) -> dict[str, str]:
    """Join caption and tags as train_util.py does."""
    words = [entry.get(CAPTION), entry.get(TAGS)]
    parts = [word for word in words if isinstance(word, str) and word]
    return {"text": ", ".join(parts)} if parts else {}


class _Pictures:
    """Images by their names without suffix.

    Args:
        root: folder at which relative names begin
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find(self, key: str) -> str | list[str]:
        """Return the image of a key, all images if several have its name, or the key itself if none has."""
        if os.path.splitext(key)[1].lower() in PICTURES:
            return key
        folder, stem = os.path.split(key)
        if folder not in self._folders:
            self._folders[folder] = _stems(self._root / folder)
        found = [os.path.join(folder, name) for name in self._folders[folder].get(stem, ())]
        return found[0] if len(found) == 1 else found or key


def _stems(folder: Path) -> dict[str, list[str]]:
    """Return every stem in a folder with the images that have it."""
    stems: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURES:
            stems.setdefault(stem, []).append(name)
    return stems
