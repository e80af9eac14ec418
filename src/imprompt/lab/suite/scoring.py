"""Compare what the judge reads in an image with what the reference shows and the text asks for."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.bounds import make_light_copy
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.evaluation.metrics import (
    bootstrap_interval,
    copy_ratios,
    is_copy,
    mean_distance,
    retrieval_ranks,
)
from imprompt.lab.making.batches import to_pixels
from imprompt.lab.making.characters import Split
from imprompt.lab.making.labels import LABELS
from imprompt.lab.suite.images import SuiteSettings
from imprompt.lab.suite.subjects import Subject, TextChange
from imprompt.report import Interval
from imprompt.runtime.files import resolve_in_cache

SCALES = (0.0, 0.5, 1.0)
"""λ without text."""

CURVE_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""λ with text."""

FLOOR, CODEC, DRAWING = "another reference", "through the autoencoder", "the drawing itself"
"""The conditions of the floor, of the ceiling, and of the judge's own accuracy."""


BATCH = 100
"""The number of images that the judge reads at once."""


DATA = "characters-128"
"""The folder of the training drawings in the cache, as `imprompt mini build-data` names it."""

COPY_BATCH = 250
"""The number of training drawings that the judge embeds at once."""

MOST = 10_000
"""The number of training drawings that are searched for copies."""

LIGHT_COPIES = 60
"""The number of light copies of training drawings that are scored, to test that copies are found."""


def name_scale(scale: float) -> str:
    """Return the name of a condition without text."""
    return f"λ = {scale:g}"


PROMPTED = name_scale(1.0)


@dataclass(frozen=True)
class Score:
    """The scores of one image; a row of scores.csv.

    Attributes:
        split, condition, scale, subject, style: the subject, and how its image was generated
        kept: share of the reference's attributes that the judge reads in the image, 0 to 1
        all_kept: whether the judge reads all of them
        asked: whether the judge reads what the text asks for; None without a text
        rank: how many of the gallery's other drawings are nearer to the image than its reference; None
            without a gallery
        similarity: cosine of the judge's identity embeddings of image and reference
        wrong: attributes that are read differently, each with the word that is read
    """

    split: str
    condition: str
    scale: float
    subject: int
    style: str
    kept: float
    all_kept: bool
    asked: bool | None
    rank: int | None
    similarity: float
    wrong: str


@dataclass(frozen=True)
class Readings:
    """What the judge reads in images: attribute → a word for each, and an identity embedding of each."""

    words: Mapping[str, Sequence[str]]
    embeddings: Float[Tensor, "pictures identity"]


@dataclass(frozen=True)
class SplitFindings:
    """The figures of one split.

    Attributes:
        kept, all_kept, found: condition → share of attributes kept, of images that keep all, of references
            that are found first
        attributes: attribute → (share at λ = 1, share in the drawing itself, number of subjects)
    """

    kept: Mapping[str, Interval]
    all_kept: Mapping[str, Interval]
    found: Mapping[str, Interval]
    attributes: Mapping[str, tuple[float, float, int]]


@dataclass(frozen=True)
class TextFindings:
    """The figures of one text, at every λ of `CURVE_SCALES`.

    Attributes:
        text: the prompt
        subjects: number of subjects
        asked: share of images in which the judge reads what the text asks for
        kept: share of the other attributes that are kept
    """

    text: str
    subjects: int
    asked: Sequence[Interval]
    kept: Sequence[Interval]

    @property
    def best(self) -> int:
        """The place of the λ with the largest product of both shares."""
        products = [one.mean * other.mean for one, other in zip(self.asked, self.kept, strict=True)]
        return products.index(max(products))


@dataclass(frozen=True)
class SuiteFindings:
    """All figures of a run; `copies` is None where the training drawings are not on this machine."""

    name: str
    tokens: int
    settings: SuiteSettings
    splits: Mapping[Split, SplitFindings]
    texts: Mapping[str, TextFindings]
    diversity: Interval
    copies: Mapping[str, Interval] | None
    seconds: float
    against: "Comparison | None" = None


@dataclass(frozen=True)
class Comparison:
    """This report minus an earlier one of the adapter `name`: figure → paired difference."""

    name: str
    differences: Mapping[str, Interval]


@torch.no_grad()
def read_pictures(judge: CharacterJudge, pictures: Sequence[Image.Image]) -> Readings:
    """Read images of the judge's own size."""
    words: dict[str, list[str]] = {}
    embeddings = []
    for start in range(0, len(pictures), BATCH):
        pixels = to_pixels(
            np.stack([np.asarray(one.convert("RGB")) for one in pictures[start : start + BATCH]])
        )
        for name, read in judge.read(pixels).items():
            words.setdefault(name, []).extend(read)
        embeddings.append(judge.embed(pixels))
    return Readings(words, torch.cat(embeddings))


class Galleries:
    """The judge's embeddings of other drawings of each style."""

    def __init__(self, judge: CharacterJudge, drawings: Mapping[str, Sequence[Image.Image]]) -> None:
        self.embeddings = {style: read_pictures(judge, some).embeddings for style, some in drawings.items()}

    def rank(
        self, style: str, picture: Float[Tensor, " identity"], reference: Float[Tensor, " identity"]
    ) -> int:
        """Return how many of the style's other drawings are as near to the image as its reference."""
        gallery = torch.cat([reference[None], self.embeddings[style]])
        return int(retrieval_ranks(picture[None] @ gallery.T, torch.zeros(1, dtype=torch.int64))[0])


def score_pictures(
    subjects: Sequence[Subject],
    readings: Readings,
    references: Readings,
    *,
    condition: str,
    scale: float,
    change: TextChange | None = None,
    galleries: Galleries | None = None,
    attributes: Collection[str] = LABELS,
) -> list[Score]:
    """Score one image of each subject.

    Args:
        subjects: in the images' order
        readings: of the images
        references: of the subjects' drawings
        condition, scale: how the images were generated
        change: the text's change, if there is a text
        galleries: in which references are searched; None where the text changes the image
        attributes: those that count; every subject has at least one
    """
    scores = []
    for row, subject in enumerate(subjects):
        character = subject.character
        names = [name for name in list_kept_attributes(subject, change) if name in attributes]
        wrong = {
            name: readings.words[name][row] for name in names if readings.words[name][row] != character[name]
        }
        embedding, reference = readings.embeddings[row], references.embeddings[row]
        scores.append(
            Score(
                split=subject.split,
                condition=condition,
                scale=scale,
                subject=subject.number,
                style=character.style,
                kept=1 - len(wrong) / len(names),
                all_kept=not wrong,
                asked=None if change is None else readings.words[change.attribute][row] == change.word,
                rank=None if galleries is None else galleries.rank(character.style, embedding, reference),
                similarity=float(embedding @ reference),
                wrong=" ".join(f"{name}={word}" for name, word in wrong.items()),
            )
        )
    return scores


def list_kept_attributes(subject: Subject, change: TextChange | None) -> list[str]:
    """List the attributes that the image should share with its reference; no judge knows unseen styles."""
    character = subject.character
    names = ["style", *character.attributes] if change is None else change.list_kept_attributes(character)
    return [name for name in names if not (name == "style" and subject.split == "styles")]


def measure_seed_distances(embeddings: Float[Tensor, "seeds subjects identity"]) -> list[float]:
    """Return the diversity of each subject: the mean cosine distance among its images of several seeds."""
    return [mean_distance(several) for several in embeddings.unbind(dim=1)]


def average(values: Iterable[float | bool]) -> Interval:
    """Return the mean over subjects with its bootstrap interval."""
    return bootstrap_interval(np.array([float(value) for value in values]))


def measure_attribute_shares(
    scores: Sequence[Score], subjects: Sequence[Subject]
) -> dict[str, tuple[float, int]]:
    """Return for each attribute the share of its subjects in whose image it is read, and their number."""
    right: dict[str, list[bool]] = {}
    for score, subject in zip(scores, subjects, strict=True):
        wrong = {pair.split("=")[0] for pair in score.wrong.split()}
        for name in list_kept_attributes(subject, None):
            right.setdefault(name, []).append(name not in wrong)
    return {name: (sum(values) / len(values), len(values)) for name, values in right.items()}


@torch.no_grad()
def count_copies(
    judge: CharacterJudge,
    images: Sequence[Image.Image],
    unseen: Sequence[Image.Image],
    folder: Path | None = None,
) -> Mapping[str, Interval] | None:
    """Return the share of copies among images, unseen drawings (what chance gives) and light copies (all).

        ratio = distance to the nearest training drawing / to the second nearest        a copy: below 1/3

    Distances are between the judge's identity embeddings, in which a drawing that was moved, blurred or
    stained is near itself. The share of light copies that are found says how reliable the other shares are.

    Args:
        judge: computes the embeddings
        images: of the model
        unseen: drawings that no model has seen
        folder: of the training drawings; by default where `imprompt mini build-data` puts them

    Returns:
        None if the training drawings are not on this machine
    """
    path = (resolve_in_cache(DATA) if folder is None else folder) / "training" / "pictures.npy"
    if not path.is_file():
        return None
    drawings = np.load(path, mmap_mode="r")[:MOST]
    gallery = torch.cat(
        [judge.embed(to_pixels(drawings[i : i + COPY_BATCH])) for i in range(0, len(drawings), COPY_BATCH)]
    )
    copied = [Image.fromarray(one) for one in drawings[:: max(1, len(drawings) // LIGHT_COPIES)]]
    several = {
        "pictures": images,
        "unseen drawings": unseen,
        "light copies of training drawings": [make_light_copy(one) for one in copied],
    }
    return {
        name: average(is_copy(copy_ratios(read_pictures(judge, pictures).embeddings, gallery)).tolist())
        for name, pictures in several.items()
    }
