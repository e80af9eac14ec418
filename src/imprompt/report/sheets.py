"""Sheets with titles: what was asked, beside what came. Look at them before you believe a score."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

GAP = 4
BLOCK_GAP = 24
TITLE_SIZE = 15
LABEL_SIZE = 11
INK = (32, 32, 36)
FAINT = (110, 110, 116)


@dataclass(frozen=True)
class Row:
    """Pictures side by side, and what stands under the first one ("" for nothing)."""

    pictures: Sequence[Image.Image]
    label: str = ""


def titled_sheet(
    titles: Sequence[str], rows: Sequence[Row], *, blocks: int = 1, cell: int = 128
) -> Image.Image:
    """Rows of pictures under column titles, in `blocks` stacks; every picture `cell` px wide (Lanczos).

    A sheet has no more stacks than rows. Titles that are wider than their column are set on two lines.
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


def _paste_row(sheet: Image.Image, row: Row, corner: tuple[int, int], cell: int) -> None:
    left, top = corner
    for column, picture in enumerate(row.pictures):
        enlarged = picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (left + column * (cell + GAP), top))
    text = _cut(row.label, len(row.pictures) * (cell + GAP) - GAP, _font(LABEL_SIZE))
    ImageDraw.Draw(sheet).text((left, top + cell + 2), text, fill=FAINT, font=_font(LABEL_SIZE))


def _write_title(sheet: Image.Image, title: str, left: int, cell: int) -> None:
    draw, font = ImageDraw.Draw(sheet), _font(TITLE_SIZE)
    for line, text in enumerate(_folded(title, cell, font)):
        width = font.getlength(text)
        draw.text((left + (cell - width) / 2, 2 + line * (TITLE_SIZE + 3)), text, fill=INK, font=font)


def _folded(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The title on one line if it fits, else on two, broken where the first line is as long as may be."""
    if font.getlength(title) <= width:
        return [title]
    words = title.split()
    fitting = [n for n in range(1, len(words)) if font.getlength(" ".join(words[:n])) <= width]
    first = max(fitting, default=1)
    return [" ".join(words[:first]), _cut(" ".join(words[first:]), width, font)]


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Text that fits the width, shortened at its end if need be."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
