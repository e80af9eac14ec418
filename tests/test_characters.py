"""The world of the embedded model: one vocabulary, every style, splits that have names, true captions."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imprompt.errors import ConfigError
from imprompt.lab.making.captions import build_attribute_phrases, sample_caption, write_full_caption
from imprompt.lab.making.characters import (
    Character,
    Split,
    belongs_to,
    change_attributes,
    change_style,
    find_character,
    sample_character,
)
from imprompt.lab.making.drawing import (
    build_dicebear_options,
    choose_variants,
    draw,
    list_variants,
    load_style,
)
from imprompt.lab.making.exporting import CHANGES, change_character, draw_sample
from imprompt.lab.making.vocabulary import (
    ATTRIBUTES,
    PARTS,
    Choice,
    is_held_out,
    list_held_out_variants,
    load_vocabulary,
    split_variants,
)

VOCABULARY = load_vocabulary()
STYLES = tuple(VOCABULARY.styles)
HUMAN = tuple(name for name in VOCABULARY.trained_styles if name != "bottts")

every_style = pytest.mark.parametrize("style", STYLES)
every_trained_style = pytest.mark.parametrize("style", VOCABULARY.trained_styles)
seeds = st.integers(0, 2**31 - 1)

PERSON = Character(
    "avataaars",
    {
        "hair": "pink",
        "skin": "dark",
        "clothes": "green",
        "ground": "white",
        "hairdo": "bob",
        "expression": "sad",
        "glasses": "glasses",
        "beard": "none",
    },
    seed=3,
)


def pixels(character: Character) -> np.ndarray:
    return np.asarray(draw(character, 64)).astype(int)


# Vocabulary


def test_twelve_styles_are_trained_on_and_two_are_not() -> None:
    assert len(VOCABULARY.trained_styles) == 12
    assert VOCABULARY.unseen_styles == ("lorelei", "notionists")


def test_a_color_is_one_color_in_every_style() -> None:
    assert {name: len(colors) for name, colors in VOCABULARY.colors.items()} == {
        "hair": 12,
        "skin": 5,
        "clothes": 12,
        "ground": 11,
    }


@every_style
def test_every_word_of_a_style_is_in_the_vocabulary(style: str) -> None:
    parts = VOCABULARY.styles[style]
    for attribute in parts.attributes:
        assert set(parts.words(attribute)) <= set(VOCABULARY.words(attribute))


@every_style
def test_every_variant_that_a_word_names_exists(style: str) -> None:
    parts = VOCABULARY.styles[style]
    choices = [*parts.always]
    choices += [choice for words in parts.parts.values() for lines in words.values() for choice in lines]
    for choice in choices:
        for component, variants in choice.components.items():
            assert variants == ("*",) or set(variants) <= set(list_variants(parts, component))


@every_style
def test_every_color_option_exists(style: str) -> None:
    parts = VOCABULARY.styles[style]
    known = set(load_style(style).colors())
    assert {option for options in parts.colors.values() for option in options} <= known
    assert set(parts.fixed) <= known


def test_a_choice_names_components_and_variants() -> None:
    choice = Choice.parse("mouth=smile|laugh glasses=-")
    assert choice.components == {"mouth": ("smile", "laugh"), "glasses": ()}


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_training_always_has_a_variant_and_shares_none_with_what_is_held_out(
    style: str, component: str, variants: list[str]
) -> None:
    training, held_out = split_variants(style, component, variants)
    assert training
    assert sorted(training + held_out) == sorted(variants)


# Characters


@given(seeds)
def test_training_never_sees_what_is_held_out(seed: int) -> None:
    character = sample_character(random.Random(seed))
    assert not character.is_held_out
    assert not (character.combination and is_held_out(*character.combination))
    style = VOCABULARY.styles[character.style]
    variants = set(choose_variants(character, style).items())
    for attribute in PARTS:
        word = character.get(attribute)
        assert not word or not variants & set(list_held_out_variants(style, attribute, word))


@given(seeds, st.sampled_from(["combinations", "parts", "styles"]))
def test_an_unseen_character_differs_from_training_in_one_way(seed: int, split: Split) -> None:
    character = sample_character(random.Random(seed), split)
    assert character.is_held_out
    assert [one for one in ("training", "combinations", "parts", "styles") if belongs_to(character, one)] == [
        split
    ]


@given(seeds)
def test_an_unseen_part_is_drawn_with_a_variant_that_training_never_sees(seed: int) -> None:
    character = sample_character(random.Random(seed), "parts")
    style = VOCABULARY.styles[character.style]
    word = character[character.unseen_part]
    held_out = set(list_held_out_variants(style, character.unseen_part, word))
    assert held_out & set(choose_variants(character, style).items())


@given(seeds)
def test_the_same_seed_is_the_same_character(seed: int) -> None:
    assert sample_character(random.Random(seed)) == sample_character(random.Random(seed))


@given(seeds)
def test_nothing_has_the_color_of_the_ground_behind_it(seed: int) -> None:
    character = sample_character(random.Random(seed))
    assert character["ground"] not in [character.get(name) for name in ("hair", "clothes", "robot")]


def test_a_bald_head_and_a_hat_have_no_hair_color() -> None:
    for hairdo in ("bald", "hat"):
        changed = change_attributes(PERSON, {"hairdo": hairdo}, random.Random(0))
        assert changed.get("hair") is None
        assert change_attributes(changed, {"hairdo": "bob"}, random.Random(0)).get("hair") is not None


def test_a_word_that_a_style_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match="no hairdo 'mohawk'; it has: bald, short"):
        change_attributes(PERSON, {"hairdo": "mohawk"}, random.Random(0))
    with pytest.raises(ConfigError, match="have no robot; they have: hair"):
        change_attributes(PERSON, {"robot": "red"}, random.Random(0))


@given(seeds, st.sampled_from(HUMAN))
def test_a_character_keeps_its_words_in_another_style(seed: int, other: str) -> None:
    character = sample_character(random.Random(seed), "training", "open-peeps")
    moved = change_style(character, other, random.Random(0))
    if moved is None:
        return
    shared = set(moved.attributes) & set(character.attributes)
    words = {name for name in shared if character[name] in VOCABULARY.styles[other].words(name)}
    assert "skin" in words
    assert all(moved[name] == character[name] for name in words)


def test_a_wanted_character_has_the_words_and_is_unseen() -> None:
    found = find_character({"hair": "pink", "glasses": "sunglasses"}, random.Random(1))
    assert (found["hair"], found["glasses"], found.is_held_out) == ("pink", "sunglasses", True)


@pytest.mark.parametrize(
    ("wanted", "style", "message"),
    [
        ({"hair": "mauve"}, None, "hair 'mauve' is not in the vocabulary; it has: black, brown"),
        ({"robot": "red", "hair": "pink"}, None, "no style draws all of: robot red, hair pink"),
        ({"hair": "pink", "ground": "pink"}, None, "one of them would hide another"),
        ({"hair": "pink", "hairdo": "bald"}, None, "one of them would hide another"),
        ({}, "cubist", "there is no style 'cubist'; the styles are: adventurer"),
    ],
)
def test_what_cannot_be_drawn_is_said(wanted: dict[str, str], style: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_character(wanted, random.Random(0), style)


# Drawings


@every_style
def test_every_style_draws_an_opaque_picture(style: str) -> None:
    split = "styles" if VOCABULARY.styles[style].held_out else "training"
    picture = draw(sample_character(random.Random(0), split, style), 64)
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 3


@every_trained_style
def test_every_attribute_is_seen_in_the_picture(style: str) -> None:
    """Another word, another picture: in at least one of several characters, for every word of the style."""
    rng = random.Random(0)
    characters = [sample_character(rng, "training", style) for _ in range(12)]
    for attribute in VOCABULARY.styles[style].attributes:
        for word in VOCABULARY.styles[style].words(attribute):
            changed = [
                (one, change_attributes(one, {attribute: word}, random.Random(0)))
                for one in characters
                if one.get(attribute) not in (None, word)
            ]
            seen = [(a, b) for a, b in changed if b.get(attribute) == word]
            assert not seen or any((pixels(a) != pixels(b)).any() for a, b in seen[:3]), (attribute, word)


def test_the_ground_lies_behind_everything() -> None:
    red = change_attributes(PERSON, {"ground": "red"}, random.Random(0))
    assert tuple(pixels(red)[0, 0]) == (0xE3, 0x4B, 0x4B)


@pytest.mark.slow
def test_pink_hair_is_the_same_pink_in_every_style_that_has_hair() -> None:
    pink = np.array([0xF4, 0x88, 0xB4])
    for style in HUMAN:
        found = find_character(
            {"hair": "pink", "hairdo": "long" if style != "miniavs" else "curly"}, random.Random(0), style
        )
        near = (np.abs(pixels(found) - pink).max(axis=2) < 12).mean()
        assert near > 0.01, style


def test_the_seed_of_a_character_chooses_its_shapes() -> None:
    other = [Character(PERSON.style, PERSON.attributes, seed) for seed in range(8)]
    assert len({str(build_dicebear_options(one) | {"seed": ""}) for one in other}) > 3


# Captions


@given(seeds)
def test_a_caption_names_only_what_is_there(seed: int) -> None:
    character = sample_character(random.Random(seed))
    caption = sample_caption(character, random.Random(seed))
    for attribute in ("clothes", "skin"):
        for word in VOCABULARY.words(attribute):
            if f"{word} {attribute}" in caption:
                assert character.get(attribute) == word
    for word in ("beard", "moustache", "sunglasses"):
        if word in caption.replace(f"no {word}", ""):
            assert word in character.attributes.values()


def test_the_full_caption_names_every_attribute() -> None:
    assert write_full_caption(PERSON) == (
        "avataaars style, pink bob, dark skin, green clothes, sad, glasses, on a white background"
    )


def test_a_robot_is_its_style() -> None:
    robot = Character("bottts", {"robot": "orange", "ground": "teal"})
    assert write_full_caption(robot) == "orange robot, on a teal background"


def test_some_captions_are_empty_and_orders_differ() -> None:
    rng = random.Random(0)
    captions = [sample_caption(PERSON, rng) for _ in range(300)]
    assert "" in captions
    assert len({caption.split(", ")[0] for caption in captions}) > 8


def test_phrases_without_chance_leave_out_what_is_not_there() -> None:
    assert "beard" not in build_attribute_phrases(PERSON, None)


# Samples whose reference differs


@pytest.mark.parametrize("change", [change for change in CHANGES if change not in ("", "style")])
def test_a_changed_reference_differs_in_that_attribute_alone(change: str) -> None:
    rng = random.Random(0)
    pairs = [(one, change_character(one, change, rng)) for one in (sample_character(rng) for _ in range(60))]
    changed = [(a, b) for a, b in pairs if b is not None]
    assert changed
    for before, after in changed:
        different = {name for name in ATTRIBUTES if before.get(name) != after.get(name)}
        assert change in different
        assert different <= {change, "ground"}, "a ground gives way to clothes of its color"


def test_a_sample_whose_reference_differs_has_a_caption() -> None:
    samples = [draw_sample(random.Random(seed), "training", 16) for seed in range(80)]
    differing = [sample for sample in samples if sample.reference is not None]
    assert 20 < len(differing) < 60
    assert all(sample.text for sample in differing)
    assert any(not sample.text for sample in samples)


# The command


def test_mini_draw_writes_a_reference_that_says_what_it_shows(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from imprompt.cli import app
    from imprompt.generation.job import read_settings

    output = tmp_path / "reference.png"
    result = CliRunner().invoke(
        app,
        ["mini", "draw", str(output), "--style", "pixel-art", "--hair", "pink", "--glasses", "--seed", "7"],
    )
    assert result.exit_code == 0, result.output
    settings = read_settings(output)
    assert settings["style"] == "pixel-art"
    assert settings["attributes"]["hair"] == "pink"
    assert settings["attributes"]["glasses"] == "glasses"
    character = Character(**{key: settings[key] for key in ("style", "attributes", "seed", "unseen_part")})
    with Image.open(output) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(draw(character)))
