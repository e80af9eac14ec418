"""Pictures as text: base64 for JSON answers and events."""

import base64
import io
from pathlib import Path

from PIL import Image


def encode_file(path: Path) -> str:
    """Return a file as base64."""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def encode_picture(picture: Image.Image, kind: str) -> str:
    """Return a picture as base64, in a format of PIL; its settings are left out."""
    file = io.BytesIO()
    picture.save(file, kind)
    return base64.b64encode(file.getvalue()).decode("ascii")


def encode_data_uri(picture: Image.Image, kind: str) -> str:
    """Return a picture as a data: URI, which a page shows as it is."""
    return f"data:image/{kind.lower()};base64,{encode_picture(picture, kind)}"


def convert_data_uri(uri: str, kind: str) -> str:
    """Return the picture of a data: URI as base64 of another format."""
    data = base64.b64decode(uri.partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        return encode_picture(picture, kind)
