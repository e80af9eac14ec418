"""What a figure's sentence is held against: numbers from the judge, from colours, from edges.

All are over pairs (picture, what it should be like); beside each stands the same number for wrong pairs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageChops

from imprompt.evaluation.grounds import border_colour
from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import Interval, bootstrap_interval, cosine_similarity
from imprompt.mini import edge_picture

BINS = 4
"""Shades of each channel that a palette tells apart."""

GROUND_SPREAD = 40
"""Pixels that differ from the border's colour by at most this in each channel, of 255, are ground."""

CELLS = 8
"""Places in a row that a layout tells apart."""

Pictures = Sequence[Image.Image]


def likeness_gap(judge: Judge, pictures: Pictures, references: Pictures) -> Interval | None:
    """The judge's similarity to the own reference minus to all others on average; nothing to say of one."""
    if len(pictures) < 2:
        return None
    similarity = cosine_similarity(judge.features(pictures), judge.features(references)).numpy()
    return own_minus_others(similarity)


def colour_gap(pictures: Pictures, references: Pictures) -> Interval | None:
    """The palette's share that is the own reference's, minus the others': 0 to follow nothing, at most 1."""
    if len(pictures) < 2:
        return None
    ours, theirs = ([palette(picture) for picture in several] for several in (pictures, references))
    return own_minus_others(np.array([[np.minimum(a, b).sum() for b in theirs] for a in ours]))


def edge_gap(pictures: Pictures, controls: Pictures) -> Interval | None:
    """Correlation with the own control's edges minus with the others'."""
    return correlation_gap([edge_picture(picture) for picture in pictures], controls)


def layout_gap(pictures: Pictures, others: Pictures) -> Interval | None:
    """Correlation of where something is, coarsely, with where it is in the own other picture minus others."""
    return correlation_gap(*([layout(picture) for picture in several] for several in (pictures, others)))


def correlation_gap(pictures: Pictures, others: Pictures) -> Interval | None:
    """Correlation of grey values with the own other picture's minus with the others'."""
    if len(pictures) < 2:
        return None
    return own_minus_others(correlations(pictures, others))


def correlations(pictures: Pictures, others: Pictures) -> Float[np.ndarray, "pictures others"]:
    """Correlation of grey values of every picture with every other one."""
    ours, theirs = (torch.stack([grey(picture) for picture in several]) for several in (pictures, others))
    return (ours @ theirs.T).numpy()


def own_minus_others(similarity: Float[np.ndarray, "pictures pictures"]) -> Interval:
    """The diagonal minus the rest of its row, with its interval over rows."""
    return bootstrap_interval(own_minus_rest(similarity))


def own_minus_rest(similarity: Float[np.ndarray, "pictures pictures"]) -> Float[np.ndarray, " pictures"]:
    """The diagonal minus the mean of the rest of its row."""
    own = similarity.diagonal()
    return own - (similarity.sum(axis=1) - own) / (len(similarity) - 1)


def palette(picture: Image.Image) -> Float[np.ndarray, " colours"]:
    """Shares of `BINS`³ colours among the pixels that stand out from the ground, where there are any."""
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    stands_out = np.abs(pixels - border_colour(picture)).max(axis=1) > GROUND_SPREAD
    drawn = pixels[stands_out] if stands_out.any() else pixels
    bins = (drawn * BINS // 256) @ (BINS**2, BINS, 1)
    return np.bincount(bins, minlength=BINS**3) / len(drawn)


def layout(picture: Image.Image) -> Image.Image:
    """How unlike the ground a picture is in each of `CELLS` × `CELLS` places."""
    ground = Image.new("RGB", picture.size, border_colour(picture))
    channels = ImageChops.difference(picture.convert("RGB"), ground).split()
    unlike = ImageChops.lighter(ImageChops.lighter(*channels[:2]), channels[2])
    return unlike.resize((CELLS, CELLS), Image.Resampling.BOX)


def grey(picture: Image.Image) -> Float[torch.Tensor, " pixels"]:
    """A picture as one vector of mean 0 and length 1, so that products are correlations."""
    values = torch.from_numpy(np.array(picture.convert("L"))).flatten().float()
    centred = values - values.mean()
    return centred / centred.norm().clamp(min=1e-6)


def mean_difference(pictures: Pictures, others: Pictures) -> float:
    """Mean absolute difference of two rows of pictures, of 255."""
    pairs = zip(pictures, others, strict=True)
    return float(
        np.mean([np.abs(np.subtract(np.asarray(a, int), np.asarray(b, int))).mean() for a, b in pairs])
    )


def share(found: Sequence[bool]) -> str:
    """How many of how many."""
    return f"{sum(found)} of {len(found)}"
