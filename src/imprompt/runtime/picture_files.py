"""Picture files and the texts in them: imprompt's settings, and the parameters that other programs read.

    format        settings (JSON)                        parameters (plain text)
    PNG           text chunk "imprompt"                  text chunk "parameters"
    JPEG, WebP    XMP property imprompt:settings         EXIF UserComment

A1111's web UI established the places of the parameters; its descendants and several galleries read them.
"""

import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from imprompt.errors import OutputError
from imprompt.runtime.output import check_output, write_atomically

SETTINGS_KEY = "imprompt"
"""Keyword under which PNG files and `Image.info` hold a picture's settings as JSON."""

PARAMETERS_KEY = "parameters"
"""Keyword under which PNG files and `Image.info` hold the parameters."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffix → the format of a picture that imprompt writes."""

_QUALITY: dict[str, dict[str, Any]] = {
    "PNG": {},
    # No chroma subsampling: it blurs colored edges, of which drawings consist.
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_MAX_JPEG_TEXT = 65_000
"""The most bytes of one text in a JPEG file: its segments hold 65,533 bytes, with a header."""

_UNICODE = b"UNICODE\0"
_NAMESPACE = "urn:imprompt:settings"
_PROPERTY = re.compile(rb"<imprompt:settings>(.*?)</imprompt:settings>", re.DOTALL)
_XMP = (
    "<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'>"
    "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
    f"<rdf:Description rdf:about='' xmlns:imprompt='{_NAMESPACE}'>"
    "<imprompt:settings>{}</imprompt:settings>"
    "</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
)


def save_picture(
    picture: Image.Image,
    path: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    quality: int | None = None,
) -> None:
    """Write a picture with its settings, atomically; an existing file is replaced.

    PNG and WebP keep every pixel; JPEG is written with quality 95. If `picture.info` has "parameters", as
    every picture of `imprompt.generate` has, they are written where other programs look for them.

    Args:
        picture: the picture
        path: its name must end in .png, .jpg, .jpeg or .webp
        settings: values that JSON can represent; `imprompt.generation.job.read_settings` reads them. By
            default those in `picture.info`, where `imprompt.generate` puts them, if there are any
        quality: 1 to 100, for JPEG and WebP, in place of what is said above; PNG ignores it

    Raises:
        OutputError: the suffix is another one, the folder is missing, the disk is full, or the settings do
            not fit into a JPEG file
    """
    path = Path(path)
    check_output(path, *FORMATS)
    own, parameters = (str(picture.info.get(key, "")) for key in (SETTINGS_KEY, PARAMETERS_KEY))
    text = own if settings is None else json.dumps(settings)
    arguments = _build_save_arguments(path, text, parameters)
    if quality is not None:
        arguments |= {"quality": quality, "lossless": False}
    with write_atomically(path) as part:
        picture.save(part, **arguments)


def read_settings_text(picture: Image.Image) -> str | None:
    """Return imprompt's settings in an opened PNG, JPEG or WebP picture; None if there are none."""
    text = picture.info.get(SETTINGS_KEY)
    if isinstance(text, str):
        return text
    xmp = picture.info.get("xmp")
    found = _PROPERTY.search(xmp) if isinstance(xmp, bytes) else None
    return html.unescape(found[1].decode("utf-8", errors="replace")) if found else None


def read_parameters(picture: Image.Image) -> str:
    """Return the parameters in an opened picture; "" if there are none."""
    text = picture.info.get(PARAMETERS_KEY)
    if isinstance(text, str):
        return text
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return ""
    # The standard leaves the order of the bytes open; the web UI writes the high one first.
    return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")


def _build_save_arguments(path: Path, settings: str, parameters: str) -> dict[str, Any]:
    """Return the arguments of `PIL.Image.Image.save` that write both texts into the format of a suffix.

    Args:
        path: its suffix, in FORMATS, says which format
        settings: JSON in ASCII; "" for none
        parameters: "" for none

    Raises:
        OutputError: the texts do not fit into a JPEG file
    """
    kind = FORMATS[path.suffix.lower()]
    arguments = {"format": kind, **_QUALITY[kind]}
    if kind == "PNG":
        return arguments | {"pnginfo": _build_png_texts(settings, parameters)}
    xmp = _XMP.format(html.escape(settings, quote=False)).encode() if settings else b""
    comment = _UNICODE + parameters.encode("utf-16-be", errors="replace") if parameters else b""
    if kind == "JPEG" and (longest := max(len(xmp), len(comment))) > _MAX_JPEG_TEXT:
        raise OutputError(
            f"{path} cannot be written: the settings of the picture have {longest:,} bytes and a JPEG file "
            f"holds {_MAX_JPEG_TEXT:,}; use .png or .webp"
        )
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return arguments | ({"xmp": xmp} if xmp else {}) | ({"exif": exif} if comment else {})


def _build_png_texts(settings: str, parameters: str) -> PngInfo:
    texts = PngInfo()
    for key, text in ((SETTINGS_KEY, settings), (PARAMETERS_KEY, parameters)):
        if text:
            texts.add_text(key, text)
    return texts
