"""What a caption says about an emoji picture: what it shows, in whose style, where, on what ground.

The image prompt carries content and style; ground, size, place and company are what the text alone decides.
"""

import random
from collections.abc import Sequence

from imprompt.mini.grounds import GROUNDS
from imprompt.training.emoji import STYLES, Drawing

WHITE_SHARE = 0.4
PLACES = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left", "right")


def caption_one(drawing: Drawing, ground: str | None, rng: random.Random, *, place: str = "") -> str:
    """A caption of one drawing: noun, perhaps keywords, perhaps the style; place and ground when named."""
    words = noun(drawing, rng)
    if rng.random() < 0.3 and drawing.keywords:
        words = ", ".join([words, *rng.sample(drawing.keywords, min(2, len(drawing.keywords)))])
    if place:
        words = f"a small {words} at the {place}"
    return ", ".join([words, *ending(drawing.style, ground, rng)])


def caption_none(drawing: Drawing, ground: str | None, rng: random.Random) -> str:
    """A caption that leaves open what is drawn: style and ground alone, or nothing at all."""
    return ", ".join(ending(drawing.style, ground, rng))


def caption_two(pair: Sequence[Drawing], ground: str | None, rng: random.Random) -> str:
    """A caption of two drawings side by side, left one first."""
    left, right = (noun(drawing, rng) for drawing in pair)
    form = rng.choice(("{} to the left of {}", "{} and {}", "{} next to {}"))
    return ", ".join([form.format(left, right), *ending(pair[0].style, ground, rng)])


def noun(drawing: Drawing, rng: random.Random) -> str:
    """The concept's name; now and then one of its keywords instead."""
    if drawing.keywords and rng.random() < 0.1:
        return rng.choice(drawing.keywords)
    return drawing.concept


def ending(style: str, ground: str | None, rng: random.Random) -> list[str]:
    """The caption's last parts: the style two times out of three, and the ground when it is named."""
    parts = [f"{style} style"] if rng.random() < 0.67 else []
    return parts + ([f"on a {ground} background"] if ground else [])


def sample_ground(rng: random.Random) -> str:
    """A ground's colour word; white more often than any other."""
    return "white" if rng.random() < WHITE_SHARE else rng.choice(tuple(GROUNDS))


def every_caption(drawings: Sequence[Drawing], rng: random.Random) -> list[str]:
    """One caption of each drawing with every kind of word in it: what a tokenizer is trained on."""
    words = [f"{style} style" for style in STYLES.values()]
    words += [f"on a {ground} background" for ground in GROUNDS]
    words += [f"a small {place} at the to the of and next to {side}" for place in PLACES for side in SIDES]
    captions = [caption_one(drawing, sample_ground(rng), rng) for drawing in drawings]
    return captions + [", ".join(drawing.keywords) for drawing in drawings] + words * 20
