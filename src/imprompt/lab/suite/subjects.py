"""The subjects of the suite: unseen characters with their drawings, and galleries of other drawings."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from imprompt.lab.making.characters import (
    Character,
    Split,
    change_attributes,
    change_style,
    has_word,
    sample_character,
)
from imprompt.lab.making.drawing import draw
from imprompt.lab.making.vocabulary import load_vocabulary

SPLITS: tuple[Split, ...] = ("combinations", "parts", "styles")

TEXT_SPLIT: Split = "combinations"
"""The split of the characters with texts."""


@dataclass(frozen=True)
class Subject:
    """One unseen character, whose drawing is an image prompt.

    Attributes:
        number: its place in its split; seeds follow from it
        split: how it differs from the training characters
        character: its attributes
        picture: its drawing, RGB
    """

    number: int
    split: Split
    character: Character
    picture: Image.Image


def sample_subjects(split: Split, count: int, seed: int = 0) -> list[Subject]:
    """Return the first `count` characters of a split, without robots, which have few attributes."""
    subjects: list[Subject] = []
    place = 0
    while len(subjects) < count:
        character = sample_character(random.Random(f"{seed}/suite/{split}/{place}"), split)
        place += 1
        if "robot" not in character.attributes:
            subjects.append(Subject(len(subjects), split, character, draw(character)))
    return subjects


def sample_gallery(style: str, count: int, seed: int = 1) -> list[Image.Image]:
    """Draw `count` other characters of a style."""
    split: Split = "styles" if load_vocabulary().styles[style].held_out else "training"
    rngs = (random.Random(f"{seed}/gallery/{style}/{place}") for place in range(count))
    return [draw(sample_character(rng, split, style)) for rng in rngs]


@dataclass(frozen=True)
class TextChange:
    """A text that asks for something that the reference does not show.

    Attributes:
        text: the prompt
        attribute: what it changes; "style" for the style
        word: what it asks for
    """

    text: str
    attribute: str
    word: str

    def suits(self, character: Character) -> bool:
        """Whether the character does not have it, and a character like it could."""
        if character.get(self.attribute) == self.word:
            return False
        style = load_vocabulary().styles[character.style]
        if self.attribute == "style":
            other = load_vocabulary().styles[self.word]
            return has_word(other, "hairdo", character["hairdo"])
        return has_word(style, self.attribute, self.word) and not self.hides(character)

    def hides(self, character: Character) -> bool:
        """Whether the change would hide another attribute, or be hidden by it."""
        changed = self.apply(character)
        wanted = {**character.attributes, self.attribute: self.word}
        return any(changed.get(name) != word for name, word in wanted.items())

    def apply(self, character: Character) -> Character:
        """Return the changed character, or the character as it was where no style can draw the change."""
        if self.attribute == "style":
            return change_style(character, self.word, random.Random(0)) or character
        return change_attributes(character, {self.attribute: self.word}, random.Random(0))

    def list_kept_attributes(self, character: Character) -> list[str]:
        """List the reference's attributes that the image should still show."""
        if self.attribute != "style":
            return ["style", *(name for name in character.attributes if name != self.attribute)]
        other = load_vocabulary().styles[self.word]
        return [name for name, word in character.attributes.items() if has_word(other, name, word)]


CHANGES: Mapping[str, TextChange] = {
    "sunglasses": TextChange("sunglasses", "glasses", "sunglasses"),
    "pixel-art": TextChange("pixel-art style", "style", "pixel-art"),
    "red ground": TextChange("on a red background", "ground", "red"),
}
"""Name → text of the suite."""


def select_suitable(subjects: Sequence[Subject], change: TextChange) -> list[Subject]:
    """Return the subjects of which a text asks something new."""
    return [subject for subject in subjects if change.suits(subject.character)]
