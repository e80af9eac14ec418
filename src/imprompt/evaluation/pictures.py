"""The held-out pictures: drawings of concepts that no part of the embedded model has seen."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

HELD_OUT = Path(__file__).parent / "held_out"
"""Where they are; held_out/README.md says whose they are and how the files are made."""

COLUMNS = 32
"""Drawings in a row of the sheet."""

SHIFT = 53
"""A shuffled reference is the one this many places on in its gallery."""

TWIN_DISTANCE = 16.0
"""A drawing nearer than this to a training drawing has been seen, whatever its name (flags!)."""


@dataclass(frozen=True)
class Drawing:
    """One held-out drawing: what it shows, in which style, its place on the sheet.

    `nearest` is the root mean square distance, of 255, to the most similar training drawing.
    """

    concept: str
    style: str
    nearest: float
    place: int

    @property
    def is_twin(self) -> bool:
        """Whether a training drawing looks the same."""
        return self.nearest < TWIN_DISTANCE


class HeldOut:
    """All held-out drawings, and how references and galleries are chosen from them.

    Args:
        drawings: in the order of `pictures`
        pictures: straight alpha
    """

    def __init__(self, drawings: list[Drawing], pictures: UInt8[np.ndarray, "drawings size size 4"]) -> None:
        self.drawings = drawings
        self.pictures = pictures
        self._of: dict[str, list[Drawing]] = defaultdict(list)
        for drawing in drawings:
            self._of[drawing.concept].append(drawing)

    @property
    def styles(self) -> list[str]:
        """All styles there are."""
        return sorted({drawing.style for drawing in self.drawings})

    def references(self, concepts: int | None = None) -> list[Drawing]:
        """One drawing of each concept, in a style chosen by the concept's hash; the first ones if not all."""
        return [self.reference(concept) for concept in sorted(self._of, key=chance_of)[:concepts]]

    def reference(self, concept: str) -> Drawing:
        """The drawing that stands for this concept."""
        drawings = sorted(self._of[concept], key=lambda drawing: drawing.style)
        return drawings[chance_of(f"style of {concept}") % len(drawings)]

    def gallery(self, style: str) -> list[Drawing]:
        """All drawings of a style, by hash, so that neighbours in the alphabet are not neighbours."""
        drawings = [drawing for drawing in self.drawings if drawing.style == style]
        return sorted(drawings, key=lambda drawing: chance_of(drawing.concept))

    def on_white(self, drawing: Drawing) -> Image.Image:
        """A drawing as a person would hand it in."""
        return on_white(self.pictures[drawing.place])


def load_held_out(folder: Path = HELD_OUT) -> HeldOut:
    """Read `drawings.webp` and `drawings.jsonl`, as `imprompt.training.held_out` writes them."""
    lines = (folder / "drawings.jsonl").read_text(encoding="utf-8").splitlines()
    drawings = [Drawing(**json.loads(line), place=place) for place, line in enumerate(lines)]
    with Image.open(folder / "drawings.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    size = pixels.shape[1] // COLUMNS
    cells = pixels.reshape(-1, size, COLUMNS, size, 4).swapaxes(1, 2).reshape(-1, size, size, 4)
    return HeldOut(drawings, cells[: len(drawings)])


def load_training(folder: Path) -> dict[str, UInt8[np.ndarray, "drawings size size 4"]] | None:
    """The drawings that the embedded model has seen, icon set by icon set, straight alpha.

    Args:
        folder: as `imprompt mini build-data` makes it

    Returns:
        None if there is no such folder on this machine: it is no part of the package
    """
    if not (folder / "pictures.npy").is_file():
        return None
    rows = [json.loads(line) for line in (folder / "drawings.jsonl").read_text("utf-8").splitlines()]
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    seen: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if not row["held_out"]:
            seen[row["icon_set"]].append(place)
    return {name: np.asarray(pictures[places]) for name, places in sorted(seen.items())}


def on_white(cut: UInt8[np.ndarray, "size size 4"]) -> Image.Image:
    """A drawing with straight alpha on a white ground."""
    picture = Image.fromarray(cut)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def caption_of(drawing: Drawing) -> str:
    """What a drawing's caption says of it: the concept and the style, no ground."""
    return f"{drawing.concept}, {drawing.style} style"


def chance_of(text: str) -> int:
    """A number that depends on the text alone and looks random."""
    return int.from_bytes(hashlib.sha256(f"evaluation/{text}".encode()).digest()[:8])


def shuffled_place(place: Int[Tensor, " queries"], count: int) -> Int[Tensor, " queries"]:
    """The shuffled references' places in a gallery of two or more."""
    return (place + (SHIFT % count or 1)) % count


def light_copy(picture: Image.Image) -> Image.Image:
    """The same picture a little larger, shifted and softer: what nobody would call another picture."""
    width, height = picture.size
    zoom = 0.94
    matrix = (zoom, 0, 0.05 * width, 0, zoom, 0.01 * height)
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white"
    )
    return moved.filter(ImageFilter.GaussianBlur(width / 100))
