"""Attributes as numbers, for training and testing classifiers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from imprompt.lab.making.characters import Character
from imprompt.lab.making.vocabulary import ATTRIBUTES, load_vocabulary

LABELS = ("style", *ATTRIBUTES)
"""The attributes that are read in a picture, in the order of label columns."""

NOT_DRAWN = -100
"""The label of an attribute that a style does not draw; cross-entropy ignores it."""


def to_labels(characters: Sequence[Character]) -> Int[Tensor, "characters attributes"]:
    """Return the place of every attribute's word in the vocabulary, or `NOT_DRAWN` where there is none."""
    words = {name: load_vocabulary().words(name) for name in LABELS}
    rows = [[find_place(character.get(name), words[name]) for name in LABELS] for character in characters]
    return torch.tensor(rows)


def find_place(word: str | None, words: tuple[str, ...]) -> int:
    """Return the place of a word, or `NOT_DRAWN` if it is not there (a style that is never trained on)."""
    return words.index(word) if word in words else NOT_DRAWN


def attribute_loss(scores: dict[str, Tensor], labels: Int[Tensor, "batch attributes"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over attributes, each over the pictures that have it."""
    losses = [
        F.cross_entropy(scores[name].float(), labels[:, i], ignore_index=NOT_DRAWN, reduction="sum")
        / (labels[:, i] != NOT_DRAWN).sum().clamp(min=1)
        for i, name in enumerate(LABELS)
    ]
    return torch.stack(losses).mean()


def measure_accuracies(
    scores: Sequence[dict[str, Tensor]], labels: Int[Tensor, "pictures attributes"]
) -> dict[str, float]:
    """Return for each attribute the share of pictures that have it whose word scores highest.

    Args:
        scores: of consecutive batches of the pictures
        labels: of all of them
    """
    shares = {}
    for place, name in enumerate(LABELS):
        guesses = torch.cat([score[name] for score in scores]).argmax(dim=1).cpu()
        drawn = labels[:, place] != NOT_DRAWN
        if bool(drawn.any()):
            shares[name] = float((guesses == labels[:, place])[drawn].float().mean())
    return shares
