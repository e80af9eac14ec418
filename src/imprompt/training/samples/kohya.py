"""The metadata of kohya's scripts, `meta_cap.json` or `meta_lat.json` (sd-scripts, finetune/): a JSON object.

    {"cat": {"caption": "a cat", "tags": "cat, sitting"}, "/photos/dog.png": {"caption": "a dog"}}

A key is a picture's path, or its name without suffix. As in kohya's training, the text is the caption with
the tags behind it; `columns.text = "caption"` takes the one, "tags" the other.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.errors import DataError
from imprompt.training.samples.files import PICTURES

CAPTION, TAGS = "caption", "tags"


def metadata_rows(entries: Mapping[str, object], table: Path, root: Path) -> list[dict[str, Any]]:
    """Rows of a table with the columns image, text, caption and tags, those that an entry has.

    Args:
        entries: what the file holds
        table: the file, for messages
        root: where the paths begin

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
        rows.append({**entry, **_text(entry), "image": pictures.named(key)})
    return rows


def _text(entry: Mapping[str, Any]) -> dict[str, str]:
    """Caption and tags, as train_util.py joins them."""
    words = [entry.get(CAPTION), entry.get(TAGS)]
    said = [word for word in words if isinstance(word, str) and word]
    return {"text": ", ".join(said)} if said else {}


class _Pictures:
    """Pictures by their names without suffix.

    Args:
        root: where relative names begin
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, list[str]]] = {}

    def named(self, key: str) -> str | list[str]:
        """The picture of a key; all of them if several have its name, and the key itself if none has."""
        if os.path.splitext(key)[1].lower() in PICTURES:
            return key
        folder, stem = os.path.split(key)
        if folder not in self._folders:
            self._folders[folder] = _stems(self._root / folder)
        found = [os.path.join(folder, name) for name in self._folders[folder].get(stem, ())]
        return found[0] if len(found) == 1 else found or key


def _stems(folder: Path) -> dict[str, list[str]]:
    """Every stem in a folder, and the pictures that have it."""
    stems: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURES:
            stems.setdefault(stem, []).append(name)
    return stems
