"""Facts about a picture without settings of imprompt: its format, and what other programs wrote into it."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.inputs.image import load_image, open_image
from imprompt.runtime.files import shorten
from imprompt.runtime.picture_files import read_parameters

VISIBLE_LINES = 40
"""Lines of another program's text that are shown; the rest is counted."""


def read_picture_facts(file: Path) -> dict[str, Any]:
    """Return a picture's format and size, and the settings that A1111's web UI or ComfyUI wrote into it.

    Raises:
        ImageError: the file is no picture, is damaged, or is larger than a reference may be
    """
    with open_image(file) as picture:
        load_image(picture)
        facts: dict[str, Any] = {
            "kind": "a picture without settings of imprompt",
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "mode": picture.mode + (" (transparent)" if picture.has_transparency_data else ""),
        }
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            facts["frames"] = f"{frames}, of which the first is used"
        return facts | _read_web_ui(picture) | _read_comfyui(picture.info)


def _read_web_ui(picture: Image.Image) -> dict[str, Any]:
    """Return the "parameters" that A1111's web UI and its descendants write, line by line."""
    text = read_parameters(picture)
    if not text.strip():
        return {}
    lines = [shorten(line) for line in text.splitlines() if line.strip()]
    more = [f"... and {len(lines) - VISIBLE_LINES} more lines"] if len(lines) > VISIBLE_LINES else []
    return {"parameters_of_A1111": [*lines[:VISIBLE_LINES], *more]}


def _read_comfyui(info: Mapping[Any, Any]) -> dict[str, Any]:
    """Return how many nodes of each class ComfyUI's graph has."""
    nodes = _parse_json(info.get("prompt"))
    if not isinstance(nodes, dict):
        return {}
    classes = Counter(
        node["class_type"]
        for node in nodes.values()
        if isinstance(node, dict) and isinstance(node.get("class_type"), str)
    )
    listed = [f"{count} × {shorten(name)}" for name, count in sorted(classes.items())[:VISIBLE_LINES]]
    return {"graph_of_ComfyUI": listed} if listed else {}


def _parse_json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
