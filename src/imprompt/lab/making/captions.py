"""Captions: a character's attributes in words, in varied order and number.

    "pixel-art style, a person with long pink hair, dark skin, sunglasses, on a blue background"

What a style does not draw is not named. Any subset of the phrases is a caption, also the empty one.
"""

import random
from collections.abc import Mapping

from imprompt.lab.making.characters import Character
from imprompt.lab.making.vocabulary import ATTRIBUTES, load_vocabulary

NAMED_SHARES: Mapping[str, float] = {"style": 0.6, "ground": 0.55, "none": 0.15}
"""How often an attribute is named in a caption that names most; "none" is for what is absent ("no glasses").

Other attributes are always named there.
"""

NOUN_SHARE = 0.35

HAIRDO_PHRASES: Mapping[str, tuple[str, ...]] = {
    "bald": ("bald",),
    "short": ("short {hair} hair", "{hair} short hair"),
    "long": ("long {hair} hair", "{hair} long hair"),
    "bob": ("{hair} bob", "{hair} hair in a bob"),
    "curly": ("curly {hair} hair", "{hair} curls"),
    "bun": ("{hair} bun", "{hair} hair in a bun"),
    "ponytail": ("{hair} ponytail",),
    "pigtails": ("{hair} pigtails",),
    "mohawk": ("{hair} mohawk",),
    "spiky": ("spiky {hair} hair", "{hair} spiky hair"),
    "dreadlocks": ("{hair} dreadlocks",),
    "hat": ("hat", "wearing a hat"),
}

HAIR_NOUNS = "hair|bob|curls|bun|ponytail|pigtails|mohawk|dreadlocks"
HAIRDO_SIGNS: Mapping[str, str] = {
    "short": "short[^,]* hair",
    "long": "long[^,]* hair",
    "spiky": "spiky[^,]* hair",
    "curly": "(curly|curls)",
}


def sample_caption(character: Character, rng: random.Random) -> str:
    """Write a caption that names some of a character's attributes."""
    phrases = build_attribute_phrases(character, rng)
    fullness = rng.choice((0.35, 0.7, 1.0))
    named = [phrase for phrase in phrases.values() if rng.random() < fullness]
    rng.shuffle(named)
    if named and rng.random() < NOUN_SHARE and "robot" not in phrases:
        named[0] = f"a person with {named[0]}" if rng.random() < 0.5 else f"a person, {named[0]}"
    return ", ".join(named)


def write_full_caption(character: Character) -> str:
    """Write the caption that names every attribute, in the vocabulary's order."""
    return ", ".join(build_attribute_phrases(character, None).values())


def build_attribute_phrases(character: Character, rng: random.Random | None) -> dict[str, str]:
    """Return the phrase of each attribute; without a generator of all present ones, in first wordings."""
    phrases = {"style": write_style_phrase(character)}
    hairdo, hair = character.get("hairdo"), character.get("hair")
    if hairdo is not None:
        phrases["hairdo"] = write_hair_phrase(hairdo, hair, rng)
    for attribute in ("skin", "clothes", "robot", "expression", "glasses", "beard", "ground"):
        word = character.get(attribute)
        if word is not None:
            phrases[attribute] = write_attribute_phrase(attribute, word, rng)
    if "robot" in phrases:
        del phrases["style"]
    if rng is None:
        return {name: phrase for name, phrase in phrases.items() if character.get(name) != "none"}
    return {name: phrase for name, phrase in phrases.items() if is_named(character, name, rng)}


def is_named(character: Character, attribute: str, rng: random.Random) -> bool:
    """Decide whether a caption that names most attributes names this one."""
    key = "none" if character.get(attribute) == "none" else attribute
    return rng.random() < NAMED_SHARES.get(key, 1.0)


def write_style_phrase(character: Character) -> str:
    """Write `pixel-art style`."""
    return f"{load_vocabulary().styles[character.style].word} style"


def write_hair_phrase(hairdo: str, hair: str | None, rng: random.Random | None) -> str:
    """Write hairdo and hair color in one phrase, or sometimes only one of them."""
    wordings = HAIRDO_PHRASES[hairdo]
    wording = wordings[0] if rng is None else rng.choice(wordings)
    if hair is None:
        return wording
    if rng is not None and rng.random() < 0.25:
        return f"{hair} hair" if rng.random() < 0.5 else " ".join(wording.format(hair="").split())
    return wording.format(hair=hair)


def write_attribute_phrase(attribute: str, word: str, rng: random.Random | None = None) -> str:
    """Write `dark skin`, `red clothes`, `on a blue background`, `no beard`, `angry`."""
    if attribute == "ground":
        article = "an" if word[0] in "aeiou" else "a"
        return f"{word} background" if rng and rng.random() < 0.3 else f"on {article} {word} background"
    if word == "none":
        return f"no {attribute}"
    nouns = {"skin": "skin", "clothes": "clothes", "robot": "robot", "hair": "hair"}
    return f"{word} {nouns[attribute]}" if attribute in nouns else word


def build_caption_patterns() -> dict[str, dict[str, str]]:
    """Return for each attribute and word the regular expression that finds the word in a caption."""
    vocabulary = load_vocabulary()
    styles = {name: rf"\b{vocabulary.styles[name].word} style\b" for name in vocabulary.trained_styles}
    return {
        "style": styles,
        **{
            name: {word: build_word_pattern(name, word) for word in vocabulary.words(name)}
            for name in ATTRIBUTES
        },
    }


def build_word_pattern(attribute: str, word: str) -> str:
    """Return a regular expression for a word in its phrases, which matches no phrase of another word."""
    if attribute == "hair":
        return rf"\b{word}\b[^,]*\b({HAIR_NOUNS})\b"
    if attribute == "hairdo":
        return rf"\b{HAIRDO_SIGNS.get(word, word)}\b"
    if word == "none":
        return rf"\bno {attribute}\b"
    nouns = {"ground": " background", "skin": " skin", "clothes": " clothes", "robot": " robot"}
    return rf"(?<!no )\b{word}{nouns.get(attribute, '')}\b"
