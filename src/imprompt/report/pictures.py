"""Pictures of a page: sheets with titles, rows of squares, and data URIs that fit into a number of bytes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 4
BLOCK_GAP = 24
TITLE_SIZE = 15
LABEL_SIZE = 11
INK = (32, 32, 36)
FAINT = (110, 110, 116)

SMALLEST_CELL, LARGEST_CELL = 128, 256
"""The smallest and the largest side of a picture in a grid, in pixels of the file."""

_SIDES = (1600, 1280, 1024, 832, 640, 512, 400, 320, 240, 160, 96)
_QUALITIES = (84, 68)


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side, and the label under the first one ("" for none)."""

    pictures: Sequence[Image.Image]
    label: str = ""


def draw_sheet(
    titles: Sequence[str], rows: Sequence[PictureRow], *, blocks: int = 1, cell: int = 128
) -> Image.Image:
    """Draw rows of pictures under titles, in `blocks` stacks; every picture is `cell` px wide (Lanczos).

    A sheet has no more stacks than rows. A title that is wider than its column is written on two lines.
    """
    blocks = min(blocks, len(rows))
    per_block = -(-len(rows) // blocks)
    step = cell + GAP
    label_height = LABEL_SIZE + 6 if any(row.label for row in rows) else 0
    title_height = 2 * TITLE_SIZE + 14 if any(titles) else 0
    block_width = len(titles) * step - GAP
    width = blocks * (block_width + BLOCK_GAP) - BLOCK_GAP
    sheet = Image.new("RGB", (width, title_height + per_block * (step + label_height) - GAP), "white")
    for block in range(blocks):
        left = block * (block_width + BLOCK_GAP)
        for column, title in enumerate(titles):
            _write_title(sheet, title, left + column * step, cell)
        for index, row in enumerate(rows[block * per_block : (block + 1) * per_block]):
            _paste_row(sheet, row, (left, title_height + index * (step + label_height)), cell)
    return sheet


def _paste_row(sheet: Image.Image, row: PictureRow, corner: tuple[int, int], cell: int) -> None:
    left, top = corner
    for column, picture in enumerate(row.pictures):
        enlarged = picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (left + column * (cell + GAP), top))
    text = _cut(row.label, len(row.pictures) * (cell + GAP) - GAP, _font(LABEL_SIZE))
    ImageDraw.Draw(sheet).text((left, top + cell + 2), text, fill=FAINT, font=_font(LABEL_SIZE))


def _write_title(sheet: Image.Image, title: str, left: int, cell: int) -> None:
    draw, font = ImageDraw.Draw(sheet), _font(TITLE_SIZE)
    for line, text in enumerate(_fold(title, cell, font)):
        width = font.getlength(text)
        draw.text((left + (cell - width) / 2, 2 + line * (TITLE_SIZE + 3)), text, fill=INK, font=font)


def _fold(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Return the title as one line if it fits, else as two, of which the first is as long as possible."""
    if font.getlength(title) <= width:
        return [title]
    words = title.split()
    fitting = [n for n in range(1, len(words)) if font.getlength(" ".join(words[:n])) <= width]
    first = max(fitting, default=1)
    return [" ".join(words[:first]), _cut(" ".join(words[first:]), width, font)]


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return a text that fits the width, shortened at its end if it must be."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def join_pictures(pictures: Sequence[Image.Image]) -> Image.Image:
    """Paste pictures side by side into squares of one size; the rest of a square is white."""
    side = min(max(SMALLEST_CELL, *(max(picture.size) for picture in pictures)), LARGEST_CELL)
    whole = Image.new("RGB", (side * len(pictures), side), "white")
    for place, picture in enumerate(pictures):
        cell = ImageOps.pad(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color="white")
        whole.paste(cell, (place * side, 0))
    return whole


@dataclass(frozen=True)
class InlinePicture:
    """A picture inside a page: its data URI, and the original picture's width and height in pixels."""

    source: str
    width: int
    height: int


def embed_picture(picture: Image.Image, room: int) -> InlinePicture:
    """Return the picture as a JPEG of at most `room` bytes; see `encode_jpeg`."""
    return InlinePicture(make_data_uri(encode_jpeg(picture.convert("RGB"), room), "jpeg"), *picture.size)


def make_data_uri(data: bytes, kind: str) -> str:
    """Return the data URI of an image file of that kind, "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encode_jpeg(picture: Image.Image, room: int) -> bytes:
    """Encode the largest JPEG of at most `room` bytes, or the smallest one there is if none fits."""
    data = b""
    largest = min(max(picture.size), _SIDES[0])
    for side in (largest, *(side for side in _SIDES if side < largest)):
        smaller = picture.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            file = io.BytesIO()
            smaller.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
            data = file.getvalue()
            if len(data) <= room:
                return data
    return data
