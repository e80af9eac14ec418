"""What a picture is that carries no settings of imprompt: its form, and what other programs wrote into it."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.inputs.image import load_image, open_image
from imprompt.runtime.files import shorten

LINES_SHOWN = 40
"""Of another program's text; more are counted."""

_EXIF, _USER_COMMENT = 0x8769, 0x9286
"""Where JPEG and WebP files hold a text (EXIF 2.3)."""


def picture_facts(file: Path) -> dict[str, Any]:
    """Say what a picture is, and what A1111's web UI or ComfyUI say of how they made it.

    Raises:
        ImageError: no picture, one that is damaged, or one that is larger than a reference may be
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
        return facts | _web_ui(picture) | _comfyui(picture.info)


def _web_ui(picture: Image.Image) -> dict[str, Any]:
    """The "parameters" that A1111's web UI and its descendants write, line by line."""
    text = picture.info.get("parameters") or _user_comment(picture)
    if not isinstance(text, str) or not text.strip():
        return {}
    lines = [shorten(line) for line in text.splitlines() if line.strip()]
    more = [f"... and {len(lines) - LINES_SHOWN} more lines"] if len(lines) > LINES_SHOWN else []
    return {"parameters_of_A1111": [*lines[:LINES_SHOWN], *more]}


def _user_comment(picture: Image.Image) -> str:
    comment = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(b"UNICODE\0"):
        return ""
    # The standard leaves the order of the bytes open; the web UI writes the high one first.
    return comment.removeprefix(b"UNICODE\0").decode("utf-16-be", errors="replace")


def _comfyui(info: Mapping[Any, Any]) -> dict[str, Any]:
    """How many nodes of each class ComfyUI's graph has."""
    nodes = _json(info.get("prompt"))
    if not isinstance(nodes, dict):
        return {}
    classes = Counter(
        node["class_type"]
        for node in nodes.values()
        if isinstance(node, dict) and isinstance(node.get("class_type"), str)
    )
    listed = [f"{count} × {shorten(name)}" for name, count in sorted(classes.items())[:LINES_SHOWN]]
    return {"graph_of_ComfyUI": listed} if listed else {}


def _json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
