"""The words that describe characters, and what each word means in each style: characters.toml, checked.

    choice  "mouth=smile|laugh eyebrows=up"   one variant of each named component; "hair=-" leaves hair out

A tenth of every choice's variants is held out: shapes that no training uses.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HELD_OUT_SHARE = 0.1
"""The share of part variants, and of combinations of hair, skin and hairdo, that training never uses."""

PARTS = ("hairdo", "expression", "glasses", "beard")
"""Attributes that a style draws with its components; later ones override earlier ones."""

COLORS = ("hair", "skin", "clothes", "robot", "ground")
"""Attributes that are colors; a robot has the clothes' palette."""

ATTRIBUTES = (*COLORS, *PARTS)


@dataclass(frozen=True)
class Choice:
    """Alternative variants of some components; a component without variants is left out."""

    components: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, line: str) -> "Choice":
        """Read `component=variant|variant component=-`."""
        pairs = (pair.split("=") for pair in line.split())
        return cls({name: () if text == "-" else tuple(text.split("|")) for name, text in pairs})


@dataclass(frozen=True)
class StyleParts:
    """How one style of DiceBear draws the vocabulary.

    Attributes:
        name: the style's name in DiceBear
        word: its word in captions
        held_out: whether it must not be used in training
        colors: attribute → the style's color options that take it
        fixed: color option → the color that it always has
        palettes: attribute → color word → the color option's value, where it is not the palette's
        always: choices that every character of the style has
        parts: attribute → word → alternative choices
        ink: hairdo variants that are drawn in ink, which is black, whatever the hair color
    """

    name: str
    word: str
    held_out: bool
    colors: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, str]
    palettes: Mapping[str, Mapping[str, str]]
    always: tuple[Choice, ...]
    parts: Mapping[str, Mapping[str, tuple[Choice, ...]]]
    ink: frozenset[str]

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of a character of this style, in the vocabulary's order."""
        colors = {*self.colors, "ground"} - {"hat"}
        if self.ink:
            colors.add("hair")
        return tuple(name for name in ATTRIBUTES if name in colors or name in self.parts)

    def words(self, attribute: str) -> tuple[str, ...]:
        """Return the words that this style has for an attribute."""
        if attribute in self.parts:
            return tuple(self.parts[attribute])
        return tuple(load_vocabulary().palette(attribute))


@dataclass(frozen=True)
class Vocabulary:
    """All words, in the order of the classifiers, and all styles."""

    colors: Mapping[str, Mapping[str, str]]
    parts: Mapping[str, tuple[str, ...]]
    styles: Mapping[str, StyleParts]

    def palette(self, attribute: str) -> Mapping[str, str]:
        """Return "#rrggbb" for each color word."""
        return self.colors["clothes" if attribute in ("robot", "hat") else attribute]

    def words(self, attribute: str) -> tuple[str, ...]:
        """Return all words of an attribute; of "style", the names of the trained styles."""
        if attribute == "style":
            return self.trained_styles
        return self.parts[attribute] if attribute in self.parts else tuple(self.palette(attribute))

    @property
    def trained_styles(self) -> tuple[str, ...]:
        """The names of the styles for training."""
        return tuple(name for name, style in self.styles.items() if not style.held_out)

    @property
    def unseen_styles(self) -> tuple[str, ...]:
        """The names of the styles for evaluation only."""
        return tuple(name for name, style in self.styles.items() if style.held_out)


@cache
def load_vocabulary() -> Vocabulary:
    """Read characters.toml."""
    with Path(__file__).with_name("characters.toml").open("rb") as file:
        data = tomllib.load(file)
    styles = {name: parse_style(name, table) for name, table in data["styles"].items()}
    words = {name: tuple(words) for name, words in data["words"].items()}
    return Vocabulary(data["colors"], words, styles)


def parse_style(name: str, table: Mapping) -> StyleParts:
    """Read one style's table."""
    return StyleParts(
        name=name,
        word=table["word"],
        held_out=table.get("held_out", False),
        colors={attribute: tuple(options) for attribute, options in table["colors"].items()},
        fixed=table.get("fixed", {}),
        palettes=table.get("palettes", {}),
        always=tuple(Choice.parse(line) for line in table.get("always", ())),
        parts={
            attribute: {word: tuple(map(Choice.parse, lines)) for word, lines in table[attribute].items()}
            for attribute in PARTS
            if attribute in table
        },
        ink=frozenset(table.get("ink", ())),
    )


def is_held_out(*names: str) -> bool:
    """Whether training must not use what these names spell: the first tenth of their hashes."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32 < HELD_OUT_SHARE


def split_variants(style: str, component: str, variants: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return variants for training and held-out variants; the last one left is always for training."""
    held_out = [variant for variant in variants if is_held_out(style, component, variant)]
    training = [variant for variant in variants if variant not in held_out]
    return (training, held_out) if training else (held_out, [])


def list_held_out_variants(style: StyleParts, attribute: str, word: str) -> Iterator[tuple[str, str]]:
    """Yield (component, variant) of a word's held-out shapes."""
    for choice in style.parts.get(attribute, {}).get(word, ()):
        for component, variants in choice.components.items():
            yield from (
                (component, variant) for variant in split_variants(style.name, component, variants)[1]
            )
