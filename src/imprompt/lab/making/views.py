"""People in several views: one character in other styles, with other expressions, on other grounds.

    pictures.npy      uint8, views × 128 × 128 × RGB; `VIEWS` consecutive ones show one person
    characters.jsonl  one view a line, in the same order

What makes a person are hair, skin, hairdo, clothes, glasses and beard, as far as a style draws them.
"""

import random
from collections.abc import Mapping

import numpy as np

from imprompt.lab.making.characters import Character, Split, remove_hidden_attributes, sample_word
from imprompt.lab.making.drawing import draw_many
from imprompt.lab.making.vocabulary import StyleParts, load_vocabulary

VIEWS = 6
"""The number of views of a person."""

IDENTITY = ("hair", "skin", "hairdo", "clothes", "glasses", "beard")
"""The attributes that make a person; the others, style among them, differ among the views."""

LEAST_STYLES = 3
"""The least number of styles that can draw a person."""


def sample_person(rng: random.Random, split: Split = "training") -> list[Character]:
    """Sample a person in `VIEWS` views, each in another style as long as there are enough."""
    vocabulary = load_vocabulary()
    while True:
        words = {name: sample_word(name, vocabulary.words(name), rng) for name in IDENTITY}
        styles = [name for name in vocabulary.trained_styles if can_draw(vocabulary.styles[name], words)]
        if len(styles) < LEAST_STYLES:
            continue
        rng.shuffle(styles)
        views = [sample_view(styles[view % len(styles)], words, rng) for view in range(VIEWS)]
        if all(view.is_held_out == (split == "combinations") for view in views):
            return views


def can_draw(style: StyleParts, words: Mapping[str, str]) -> bool:
    """Whether a style draws people, and has all the words that it has an attribute for."""
    return "hairdo" in style.attributes and all(
        words[name] in style.words(name) for name in IDENTITY if name in style.attributes
    )


def sample_view(style_name: str, words: Mapping[str, str], rng: random.Random) -> Character:
    """Return the person of these words in a style, with free attributes and shapes sampled."""
    style = load_vocabulary().styles[style_name]
    shown = {name: words.get(name) or sample_word(name, style.words(name), rng) for name in style.attributes}
    return remove_hidden_attributes(Character(style_name, shown, rng.randrange(2**31)), rng)


def draw_people(task: tuple[int, Split, int, int, int]) -> tuple[list[Character], np.ndarray]:
    """Sample and draw consecutive views, a whole number of people; see `dataset.draw_block`."""
    seed, split, start, count, size = task
    places = range(start // VIEWS, (start + count) // VIEWS)
    people = [sample_person(random.Random(f"{seed}/people/{split}/{place}"), split) for place in places]
    views = [view for person in people for view in person]
    return views, draw_many(views, size)
