"""Characters: their attributes in words, sampled at random, and split by what training may use.

A character is held out by combination (hair color × skin × hairdo), by part (a shape of its hair or face) or
by style, and never by file. So an unseen character differs from all training characters in something with a
name.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from imprompt.errors import ConfigError
from imprompt.lab.making.vocabulary import StyleParts, is_held_out, list_held_out_variants, load_vocabulary

Split = Literal["training", "combinations", "parts", "styles"]
"""The characters for training, or those of unseen combinations, unseen parts, unseen styles."""

SHARES: Mapping[str, Mapping[str, float]] = {
    "glasses": {"none": 0.56, "glasses": 0.24, "sunglasses": 0.2},
    "beard": {"none": 0.64, "beard": 0.2, "moustache": 0.16},
    "ground": {"white": 0.3},
    "hairdo": {"bald": 0.06, "short": 0.18, "long": 0.16, "hat": 0.07},
}
"""How often a word is sampled; the other words share the rest."""

PART_SPLITS = ("hairdo", "expression")
"""Attributes whose shapes can be unseen parts."""


@dataclass(frozen=True)
class Character:
    """One character in one style.

    Attributes:
        style: the style's name in DiceBear
        attributes: attribute → word, for what the style can draw
        seed: chooses the shapes where a word has several; the same in every style
        unseen_part: the attribute that has a shape that training never uses; "" for none
    """

    style: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    unseen_part: str = ""

    def __getitem__(self, attribute: str) -> str:
        return self.style if attribute == "style" else self.attributes[attribute]

    def get(self, attribute: str) -> str | None:
        """Return the word of an attribute, or None where the style does not draw it."""
        return self.style if attribute == "style" else self.attributes.get(attribute)

    @property
    def combination(self) -> tuple[str, ...]:
        """Hair color, skin and hairdo, by which combinations are held out; empty for robots."""
        names = [self.attributes.get(name) for name in ("hair", "skin", "hairdo")]
        return tuple(name or "" for name in names) if any(names) else ()

    @property
    def is_held_out(self) -> bool:
        """Whether training must not use this character."""
        style = load_vocabulary().styles[self.style]
        combination = bool(self.combination) and is_held_out(*self.combination)
        return style.held_out or bool(self.unseen_part) or combination

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "style": self.style,
            "attributes": dict(self.attributes),
            "seed": self.seed,
            "unseen_part": self.unseen_part,
        }


def sample_character(rng: random.Random, split: Split = "training", style: str | None = None) -> Character:
    """Sample a character of a split, in the given style or in a random style of the split.

    Raises:
        ConfigError: there is no such style, or it has no character of the split
    """
    vocabulary = load_vocabulary()
    names = vocabulary.unseen_styles if split == "styles" else vocabulary.trained_styles
    if style is not None and is_unseen_style(style) != (split == "styles"):
        raise ConfigError(f"the style {style!r} has no characters of the split {split!r}")
    for _ in range(1000):
        character = sample_in_style(vocabulary.styles[style or rng.choice(names)], rng)
        if split == "parts":
            character = add_unseen_part(character, rng)
        if belongs_to(character, split):
            return character
    raise ConfigError(f"no character of the split {split!r} was found in the style {style!r}")


def belongs_to(character: Character, split: Split) -> bool:
    """Whether a character is of that split, and differs from training in nothing else."""
    combination = bool(character.combination) and is_held_out(*character.combination)
    if load_vocabulary().styles[character.style].held_out:
        return split == "styles" and not character.unseen_part
    if split == "parts":
        return bool(character.unseen_part) and not combination
    return (split == "combinations") == combination and not character.unseen_part and split != "styles"


def sample_in_style(style: StyleParts, rng: random.Random) -> Character:
    """Sample a character in a style, of any split."""
    attributes = {name: sample_word(name, style.words(name), rng) for name in style.attributes}
    seed = rng.randrange(2**31)
    return remove_hidden_attributes(Character(style.name, attributes, seed), rng)


def sample_word(attribute: str, words: tuple[str, ...], rng: random.Random) -> str:
    """Sample one of an attribute's words by `SHARES`."""
    shares = {word: share for word, share in SHARES.get(attribute, {}).items() if word in words}
    rest = [word for word in words if word not in shares]
    left = max(0.0, 1 - sum(shares.values())) / len(rest) if rest else 0.0
    return rng.choices(words, [shares.get(word, left) for word in words])[0]


def remove_hidden_attributes(character: Character, rng: random.Random) -> Character:
    """Remove what cannot be seen: the hair color of a bald head, and a ground of the character's color."""
    attributes = dict(character.attributes)
    style = load_vocabulary().styles[character.style]
    hidden_hair = attributes.get("hairdo") in ("bald", "hat")
    if hidden_hair:
        attributes.pop("hair", None)
    elif "hair" in attributes and "hair" not in style.colors:
        attributes["hair"] = "black"
    shown = {attributes.get(name) for name in ("hair", "clothes", "robot")}
    melting = shown | ({"beige"} if attributes.get("skin") == "pale" else set())
    while attributes.get("ground") in melting:
        attributes["ground"] = rng.choice(load_vocabulary().words("ground"))
    order = {name: place for place, name in enumerate(style.attributes)}
    return replace(character, attributes=dict(sorted(attributes.items(), key=lambda item: order[item[0]])))


def add_unseen_part(character: Character, rng: random.Random) -> Character:
    """Give one of the parts a shape that training never uses, or return the character if it has none."""
    style = load_vocabulary().styles[character.style]
    parts = [
        name
        for name in PART_SPLITS
        if name in character.attributes and any(list_held_out_variants(style, name, character[name]))
    ]
    return replace(character, unseen_part=rng.choice(parts)) if parts else character


def change_attributes(character: Character, changed: Mapping[str, str], rng: random.Random) -> Character:
    """Return the same character with some other words.

    Raises:
        ConfigError: the style does not have the attribute or the word
    """
    style = load_vocabulary().styles[character.style]
    for name, word in changed.items():
        if name not in style.attributes:
            known = ", ".join(style.attributes)
            raise ConfigError(f"characters of the style {style.name!r} have no {name}; they have: {known}")
        if word not in style.words(name):
            known = ", ".join(style.words(name))
            raise ConfigError(f"the style {style.name!r} has no {name} {word!r}; it has: {known}")
    attributes = {**character.attributes, **changed}
    if "hairdo" in changed and "hair" in style.attributes and "hair" not in attributes:
        attributes["hair"] = sample_word("hair", style.words("hair"), rng)
    return remove_hidden_attributes(replace(character, attributes=attributes), rng)


def change_style(character: Character, name: str, rng: random.Random) -> Character | None:
    """Return the same character in another style, or None if that style lacks its hairdo.

    Attributes that the other style does not draw are dropped; those that only it draws are sampled.
    """
    style = load_vocabulary().styles[name]
    hairdo = character.get("hairdo")
    if hairdo is not None and not has_word(style, "hairdo", hairdo):
        return None
    words = {
        attribute: character.attributes[attribute]
        for attribute in style.attributes
        if character.get(attribute) in style.words(attribute)
    }
    other = {a: sample_word(a, style.words(a), rng) for a in style.attributes if a not in words}
    moved = remove_hidden_attributes(Character(name, {**other, **words}, character.seed), rng)
    return moved if all(moved.get(name) == word for name, word in words.items()) else None


def find_character(wanted: Mapping[str, str], rng: random.Random, style: str | None = None) -> Character:
    """Sample a character with the wanted words, of a combination that training never used if there is one.

    Args:
        wanted: attribute → word
        rng: decides everything else
        style: the only style; by default any that has the wanted words

    Raises:
        ConfigError: no style has all the words, or the words cannot be visible together
    """
    styles = [style] if style is not None else find_styles(wanted)
    found = None
    for _ in range(200):
        name = rng.choice(styles)
        character = change_attributes(sample_character(rng, choose_unseen_split(name), name), wanted, rng)
        if any(character.get(attribute) != word for attribute, word in wanted.items()):
            continue
        if character.is_held_out:
            return character
        found = found or character
    if found is None:
        words = ", ".join(f"{attribute} {word}" for attribute, word in wanted.items())
        raise ConfigError(f"no character shows all of: {words}; one of them would hide another")
    return found


def choose_unseen_split(style: str) -> Split:
    """Return the split of a style's unseen characters; a robot has no combination that is held out."""
    if is_unseen_style(style):
        return "styles"
    return "combinations" if "hairdo" in load_vocabulary().styles[style].attributes else "training"


def find_styles(wanted: Mapping[str, str]) -> list[str]:
    """Return the trained styles that have all the wanted words.

    Raises:
        ConfigError: there is none, or the vocabulary has no such word
    """
    vocabulary = load_vocabulary()
    for attribute, word in wanted.items():
        if word not in vocabulary.words(attribute):
            known = ", ".join(vocabulary.words(attribute))
            raise ConfigError(f"{attribute} {word!r} is not in the vocabulary; it has: {known}")
    styles = (vocabulary.styles[name] for name in vocabulary.trained_styles)
    found = [style.name for style in styles if all(has_word(style, *pair) for pair in wanted.items())]
    if not found:
        words = ", ".join(f"{attribute} {word}" for attribute, word in wanted.items())
        raise ConfigError(f"no style draws all of: {words}")
    return found


def has_word(style: StyleParts, attribute: str, word: str) -> bool:
    """Whether characters of a style can have that word."""
    return attribute in style.attributes and word in style.words(attribute)


def is_unseen_style(name: str) -> bool:
    """Whether a style is never used in training.

    Raises:
        ConfigError: there is no such style
    """
    vocabulary = load_vocabulary()
    if name not in vocabulary.styles:
        raise ConfigError(f"there is no style {name!r}; the styles are: {', '.join(vocabulary.styles)}")
    return vocabulary.styles[name].held_out
