"""Draw characters: DiceBear makes the SVG, resvg renders it, on a ground of one color.

NOTICE lists licenses and authors of the styles.
"""

import json
import random
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprompt.errors import MissingExtra
from imprompt.lab.making.characters import Character
from imprompt.lab.making.vocabulary import PARTS, Choice, StyleParts, load_vocabulary, split_variants

SIZE = 128
"""Width and height of a picture, in pixels."""


def draw(character: Character, size: int = SIZE) -> Image.Image:
    """Draw the character on its ground, RGB, `size` × `size` pixels.

    Raises:
        MissingExtra: the drawing libraries (`imprompt[draw]`) are not installed
    """
    figure = render(to_svg(character), size)
    ground = load_vocabulary().palette("ground")[character["ground"]]
    picture = Image.new("RGBA", figure.size, ground)
    picture.alpha_composite(figure)
    return picture.convert("RGB")


def to_svg(character: Character) -> str:
    """Return the character as DiceBear draws it, without ground."""
    try:
        from dicebear import Avatar
    except ImportError as error:
        raise MissingExtra("dicebear", "draw") from error
    return Avatar(load_style(character.style), build_dicebear_options(character)).to_string()


def render(svg: str, size: int) -> Image.Image:
    """Render an SVG to RGBA, `size` × `size` pixels."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtra("resvg_py", "draw") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(BytesIO(bytes(png))).convert("RGBA")


@cache
def load_style(name: str) -> Any:
    """Load DiceBear's style of that name."""
    from dicebear import Style

    return Style(json.loads((find_styles_folder() / f"{name}.json").read_text(encoding="utf-8")))


def find_styles_folder() -> Path:
    """Return the folder of the definitions in the package dicebear-styles."""
    try:
        import dicebear_styles
    except ImportError as error:
        raise MissingExtra("dicebear_styles", "draw") from error
    return Path(next(iter(dicebear_styles.__path__)))


def build_dicebear_options(character: Character) -> dict[str, Any]:
    """Return DiceBear's options of this character: every component's variant, every color."""
    vocabulary = load_vocabulary()
    style = vocabulary.styles[character.style]
    options: dict[str, Any] = {"seed": str(character.seed)}
    for component, variant in choose_variants(character, style).items():
        options |= {f"{component}Probability": 100 if variant else 0}
        if variant:
            options[f"{component}Variant"] = variant
    for attribute, names in style.colors.items():
        palette = style.palettes.get(attribute, vocabulary.palette(attribute))
        color = palette[choose_color_word(character, attribute)]
        options |= {f"{name}Color": color for name in names}
    return options | {f"{name}Color": color for name, color in style.fixed.items()}


def choose_color_word(character: Character, attribute: str) -> str:
    """Return a color's word; the seed chooses one that is no attribute (a hat's, a bald man's beard)."""
    word = character.get(attribute)
    if word is not None:
        return word
    words = tuple(load_vocabulary().palette(attribute))
    return random.Random(f"{character.seed}/{attribute}").choice(words)


def choose_variants(character: Character, style: StyleParts) -> dict[str, str]:
    """Return the variant of each component; an empty name leaves the component out."""
    variants: dict[str, str] = {}
    for choice in style.always:
        variants |= choose(choice, character, style, unseen=False)
    for attribute in PARTS:
        word = character.get(attribute)
        choices = style.parts.get(attribute, {}).get(word, ()) if word else ()
        if not choices or (attribute == "glasses" and word == "none"):
            continue
        place = random.Random(f"{character.seed}/{attribute}").randrange(len(choices))
        unseen = character.unseen_part == attribute
        variants |= choose(choices[place], character, style, unseen=unseen)
    return variants


def choose(choice: Choice, character: Character, style: StyleParts, *, unseen: bool) -> dict[str, str]:
    """Choose a variant of each component by the character's seed, a held-out one if `unseen`."""
    chosen = {}
    for component, variants in choice.components.items():
        names = list_variants(style, component) if variants == ("*",) else variants
        training, held_out = split_variants(style.name, component, names)
        allowed = [name for name in training if is_inked_right(name, character, style)]
        pool = (held_out or allowed) if unseen else allowed
        rng = random.Random(f"{character.seed}/{component}")
        chosen[component] = rng.choice(pool or training) if names else ""
    return chosen


def list_variants(style: StyleParts, component: str) -> tuple[str, ...]:
    """Return every variant that the style has of a component, in its order."""
    return tuple(load_style(style.name).components()[component].variants())


def is_inked_right(variant: str, character: Character, style: StyleParts) -> bool:
    """Whether a hairdo's shape can have the character's hair color; shapes in ink are black."""
    hair = character.get("hair")
    return (
        hair is None
        or not style.ink
        or "hair" not in style.colors
        or (variant in style.ink) == (hair == "black")
    )


def draw_many(characters: Sequence[Character], size: int = SIZE) -> np.ndarray:
    """Draw characters, uint8, (characters, size, size, 3)."""
    return np.stack([np.asarray(draw(character, size)) for character in characters])
