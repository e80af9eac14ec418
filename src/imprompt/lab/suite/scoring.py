"""What the judge reads in a picture, held against what the reference shows and the text asks for."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.evaluation.metrics import bootstrap_interval, mean_distance, retrieval_ranks
from imprompt.lab.making.batches import to_pixels
from imprompt.lab.making.labels import LABELS
from imprompt.lab.suite.subjects import Subject, TextChange
from imprompt.report import Interval

BATCH = 100
"""Pictures that the judge reads at once."""


@dataclass(frozen=True)
class Score:
    """One picture.

    Attributes:
        split, condition, scale, subject, style: whose picture it is, and how it was asked for
        kept: share of the reference's attributes that the judge reads in the picture, 0 to 1
        all_kept: whether all of them
        asked: whether the judge reads what the text asks for; None without a text
        rank: how many of the gallery's other drawings are nearer to it than its reference; None without one
        similarity: cosine of the judge's identity embeddings of picture and reference
        wrong: attributes that are read otherwise, and as what
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
    """What the judge says of pictures: attribute → a word for each, and an identity embedding of each."""

    words: Mapping[str, Sequence[str]]
    embeddings: Float[Tensor, "pictures identity"]


@torch.no_grad()
def read_pictures(judge: CharacterJudge, pictures: Sequence[Image.Image]) -> Readings:
    """Let the judge read pictures of its own size."""
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
    """For each style, the judge's embeddings of other drawings of that style."""

    def __init__(self, judge: CharacterJudge, drawings: Mapping[str, Sequence[Image.Image]]) -> None:
        self.embeddings = {style: read_pictures(judge, some).embeddings for style, some in drawings.items()}

    def rank(
        self, style: str, picture: Float[Tensor, " identity"], reference: Float[Tensor, " identity"]
    ) -> int:
        """How many of the style's other drawings are as near to the picture as its reference."""
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
    """Score one picture of each subject.

    Args:
        subjects: in the pictures' order
        readings: of the pictures
        references: of the subjects' drawings
        condition, scale: how the pictures were asked for
        change: the text's, if there was one
        galleries: where references must be found again; none where the text changes the picture
        attributes: those that count, of which every subject has one at least
    """
    scores = []
    for row, subject in enumerate(subjects):
        character = subject.character
        names = [name for name in kept_names(subject, change) if name in attributes]
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


def kept_names(subject: Subject, change: TextChange | None) -> list[str]:
    """The attributes that the picture should share with its reference, but for styles that no judge knows."""
    character = subject.character
    names = ["style", *character.attributes] if change is None else change.kept_attributes(character)
    return [name for name in names if not (name == "style" and subject.split == "styles")]


def seed_distances(embeddings: Float[Tensor, "seeds subjects identity"]) -> list[float]:
    """Diversity: for each subject, the mean cosine distance among its pictures from several seeds."""
    return [mean_distance(several) for several in embeddings.unbind(dim=1)]


def mean_of(values: Iterable[float | bool]) -> Interval:
    """Mean over subjects with its bootstrap interval."""
    return bootstrap_interval(np.array([float(value) for value in values]))


def attribute_shares(scores: Sequence[Score], subjects: Sequence[Subject]) -> dict[str, tuple[float, int]]:
    """Attribute → share of the subjects that have it on whose picture it is read, and how many they are."""
    right: dict[str, list[bool]] = {}
    for score, subject in zip(scores, subjects, strict=True):
        wrong = {pair.split("=")[0] for pair in score.wrong.split()}
        for name in kept_names(subject, None):
            right.setdefault(name, []).append(name not in wrong)
    return {name: (sum(values) / len(values), len(values)) for name, values in right.items()}
