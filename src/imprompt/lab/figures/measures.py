"""Measure what a figure promises: attributes that the judge reads, edges, lines, unchanged parts.

Every measure returns one number for each row of images, from 0 to 1 (correlations from −1). More is better.
"""

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from PIL import Image

from imprompt.lab.figures.figure import Values
from imprompt.lab.making.characters import Character
from imprompt.lab.suite.scoring import Readings
from imprompt.lab.suite.subjects import Subject
from imprompt.mini import edge_picture

Pictures = Sequence[Image.Image]
Box = tuple[int, int, int, int]

COARSE = 32
"""Correlations are of images of this width, so that contours need not agree to the pixel."""


def read_shares(readings: Readings, subjects: Sequence[Subject], names: Sequence[Collection[str]]) -> Values:
    """Return the share of each character's named attributes that the judge reads; NaN for no name."""
    right = [
        [readings.words[name][row] == subject.character[name] for name in named]
        for row, (subject, named) in enumerate(zip(subjects, names, strict=True))
    ]
    return np.array([np.mean(some) if some else np.nan for some in right])


def list_differences(one: Character, other: Character, among: Collection[str]) -> list[str]:
    """Return the attributes that both characters have with different words: they identify a character."""
    both = (name for name in among if one.get(name) and other.get(name))
    return [name for name in both if one[name] != other[name]]


def measure_correlations(pictures: Pictures, others: Pictures) -> Values:
    """Return the correlation of each image's gray values with its other image's, both `COARSE` px wide."""
    pairs = zip(pictures, others, strict=True)
    return np.array([float(to_gray_vector(one) @ to_gray_vector(other)) for one, other in pairs])


def measure_edge_correlations(pictures: Pictures, edges: Pictures) -> Values:
    """Return the correlation of each image's edges with its edge image."""
    return measure_correlations(find_edges(pictures), edges)


def find_edges(pictures: Pictures) -> list[Image.Image]:
    """Return each image's edges, as the input of the ControlNet."""
    return [edge_picture(picture, picture.width) for picture in pictures]


def to_gray_vector(picture: Image.Image) -> Float[np.ndarray, " pixels"]:
    """Return gray values with mean 0 and length 1; all are zero for an image without contrast."""
    small = picture.convert("L").resize((COARSE, COARSE), Image.Resampling.BOX)
    values = np.asarray(small, np.float64).ravel()
    centered = values - values.mean()
    return centered / max(float(np.linalg.norm(centered)), 1e-6)


def measure_closeness(pictures: Pictures, others: Pictures, box: Box) -> Values:
    """Return 1 − the mean absolute difference inside a box, as a share of the range of values."""
    pairs = zip(pictures, others, strict=True)
    return np.array([1 - measure_difference(one.crop(box), other.crop(box)) for one, other in pairs])


def measure_difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean absolute difference, as a share of the range of values."""
    left, right = (np.asarray(picture.convert("RGB"), np.float64) for picture in (one, other))
    return float(np.abs(left - right).mean() / 255)


def measure_seed_differences(seeds: Sequence[Pictures]) -> Values:
    """Return the mean difference between every two seeds' images of the same row."""
    rows = zip(*seeds, strict=True)
    return np.array([np.mean([measure_difference(*pair) for pair in combinations(row, 2)]) for row in rows])
