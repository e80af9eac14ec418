"""What a figure's promise is held against: attributes that the judge reads, edges, lines, what stayed.

Every measure gives one number for each row of pictures, from 0 to 1 (correlations from −1): the more the
better.
"""

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from PIL import Image

from imprompt.lab.figures.figure import Values
from imprompt.lab.making.batches import to_pixels
from imprompt.lab.making.characters import Character
from imprompt.lab.making.lines import INK, PAPER, draw_lines
from imprompt.lab.suite.scoring import Readings
from imprompt.lab.suite.subjects import Subject
from imprompt.mini import edge_picture

Pictures = Sequence[Image.Image]
Box = tuple[int, int, int, int]

COARSE = 32
"""Correlations are of pictures this wide, so that contours need not agree to the pixel."""

LINE_SPREAD = 0.08
"""How far from the straight line between paper and ink a line drawing's color may be (RGB from 0 to 1)."""


def read_shares(readings: Readings, subjects: Sequence[Subject], names: Sequence[Collection[str]]) -> Values:
    """Share of each character's named attributes that the judge reads in its picture; NaN if none is."""
    right = [
        [readings.words[name][row] == subject.character[name] for name in named]
        for row, (subject, named) in enumerate(zip(subjects, names, strict=True))
    ]
    return np.array([np.mean(some) if some else np.nan for some in right])


def differing_names(one: Character, other: Character, among: Collection[str]) -> list[str]:
    """The attributes that both characters have and not alike: they alone tell whose a picture has."""
    both = (name for name in among if one.get(name) and other.get(name))
    return [name for name in both if one[name] != other[name]]


def correlations(pictures: Pictures, others: Pictures) -> Values:
    """Correlation of each picture's gray values with its other picture's, both `COARSE` px wide."""
    pairs = zip(pictures, others, strict=True)
    return np.array([float(gray_vector(one) @ gray_vector(other)) for one, other in pairs])


def edge_correlations(pictures: Pictures, edges: Pictures) -> Values:
    """Correlation of each picture's edges with its edge picture."""
    return correlations(find_edges(pictures), edges)


def find_edges(pictures: Pictures) -> list[Image.Image]:
    """Each picture's edges, as the ControlNet is shown them."""
    return [edge_picture(picture, picture.width) for picture in pictures]


def gray_vector(picture: Image.Image) -> Float[np.ndarray, " pixels"]:
    """Gray values with mean 0 and length 1; all zeros of a picture without any contrast."""
    small = picture.convert("L").resize((COARSE, COARSE), Image.Resampling.BOX)
    values = np.asarray(small, np.float64).ravel()
    centered = values - values.mean()
    return centered / max(float(np.linalg.norm(centered)), 1e-6)


def closeness(pictures: Pictures, others: Pictures, box: Box) -> Values:
    """1 − the mean absolute difference inside a box, as a share of the range of values."""
    pairs = zip(pictures, others, strict=True)
    return np.array([1 - difference(one.crop(box), other.crop(box)) for one, other in pairs])


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference, as a share of the range of values."""
    left, right = (np.asarray(picture.convert("RGB"), np.float64) for picture in (one, other))
    return float(np.abs(left - right).mean() / 255)


def seed_differences(seeds: Sequence[Pictures]) -> Values:
    """Mean difference between every two seeds' pictures of the same row."""
    rows = zip(*seeds, strict=True)
    return np.array([np.mean([difference(*pair) for pair in combinations(row, 2)]) for row in rows])


def line_shares(pictures: Pictures) -> Values:
    """Share of each picture's pixels whose color is that of paper, of ink, or between both."""
    paper, stroke = np.array(PAPER), np.array(INK) - np.array(PAPER)
    shares = []
    for picture in pictures:
        colors = np.asarray(picture.convert("RGB"), np.float64) / 255 - paper
        along = np.clip(colors @ stroke / (stroke @ stroke), 0, 1)
        distance = np.linalg.norm(colors - along[..., None] * stroke, axis=-1)
        shares.append((distance <= LINE_SPREAD).mean())
    return np.array(shares)


def line_picture(picture: Image.Image) -> Image.Image:
    """A picture as the line drawing on which the fine-tuned base was trained."""
    lines = draw_lines(to_pixels(np.asarray(picture.convert("RGB"))[None]))[0]
    values = ((lines.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    return Image.fromarray(values.numpy().astype(np.uint8))
