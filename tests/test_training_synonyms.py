"""Unknown keys: the words of other trainers are named by ours; nothing is guessed beyond a misspelling."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprompt.errors import ConfigError
from imprompt.runtime.settings import find_nearest, list_keys
from imprompt.training.config import TrainingConfig, parse_config
from imprompt.training.synonyms import COUNTERPARTS, WITHOUT_COUNTERPART

KNOWN = dict(list_keys(TrainingConfig))


def answer(key: str, group: str = "") -> str:
    """What a configuration with this key is answered."""
    inner: dict[str, Any] = {group: {key: 1}} if group else {key: 1}
    with pytest.raises(ConfigError) as caught:
        parse_config({"preset": "sd15", "output": "run", **inner}, "cats.toml")
    return str(caught.value)


@pytest.mark.parametrize("group", ["", "training", "data"])
@pytest.mark.parametrize("word", COUNTERPARTS)
def test_another_trainers_word_is_answered_by_ours_wherever_it_stands(word: str, group: str) -> None:
    ours = COUNTERPARTS[word]
    assert ours in {full for _, full in list_keys(TrainingConfig)}
    for spelled in (word, word.replace("_", "-"), word.upper()):
        assert answer(spelled, group) == f"cats.toml: unknown key {spelled!r}: it is {ours!r} here"


@pytest.mark.parametrize("word", WITHOUT_COUNTERPART)
def test_a_word_without_counterpart_is_answered_with_the_reason(word: str) -> None:
    reason = WITHOUT_COUNTERPART[word]
    assert answer(word, "training") == (
        f"cats.toml: unknown key {word!r}: it has no counterpart here: {reason}"
    )


def test_no_word_has_two_answers_or_is_a_key_of_ours() -> None:
    assert not COUNTERPARTS.keys() & WITHOUT_COUNTERPART.keys()
    assert not KNOWN.keys() & (COUNTERPARTS.keys() | WITHOUT_COUNTERPART.keys())


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("max_train_steps", "training.steps"),
        ("resolution", "data.size"),
        ("train_batch_size", "training.batch_size"),
        ("train_data_dir", "data.source"),
        ("data_json_file", "data.source"),
        ("gradient_accumulation_steps", "training.passes"),
        ("mixed_precision", "training.precision"),
        ("output_dir", "output"),
        ("lr_scheduler", "training.schedule"),
        ("checkpointing_steps", "training.save_every"),
        ("caption_extension", "data.columns.text"),
        ("cache_latents", "cache.enabled"),
        ("image_encoder_path", "base.image_encoder"),
    ],
)
def test_the_words_that_people_try_first(word: str, ours: str) -> None:
    assert COUNTERPARTS[word] == ours


@pytest.mark.parametrize("key", ["network_dim", "num_train_epochs", "shuffle_caption", "use_8bit_adam"])
def test_what_there_is_not_is_said(key: str) -> None:
    assert "has no counterpart here: " in answer(key)


@pytest.mark.parametrize("key", ["learning_rate", "seed", "noise_offset", "min_snr_gamma"])
def test_a_key_in_the_wrong_place_is_named_with_its_group(key: str) -> None:
    assert answer(key, "watch").endswith(f"did you mean {KNOWN[key]!r}?")


def test_a_name_that_several_groups_have_is_named_with_all_of_them() -> None:
    assert answer("batch_siez").endswith("did you mean 'cache.batch_size' or 'training.batch_size'?")


@pytest.mark.parametrize("key", ["frobnicate", "decay_steps_of_mine", "x", "size_of_batches", "", "é" * 9000])
def test_what_resembles_nothing_is_not_guessed(key: str) -> None:
    assert "did you mean" not in answer(key, "data")


@given(st.sampled_from([*KNOWN]), st.data())
def test_one_slip_in_a_key_finds_it_or_one_as_near(key: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(key) - 1))
    slip = data.draw(st.sampled_from(["left out", "added", "replaced", "swapped"]))
    head, letter, rest = key[:place], key[place], key[place + 1 :]
    wrong = {
        "left out": head + rest,
        "added": f"{head}x{letter}{rest}",
        "replaced": f"{head}x{rest}",
        "swapped": f"{head}{rest[:1]}{letter}{rest[1:]}",
    }[slip]
    found = find_nearest(wrong, KNOWN)
    assert found is not None
    assert abs(len(found) - len(wrong)) <= 1


def test_a_word_is_nearest_to_itself() -> None:
    assert all(find_nearest(key, KNOWN) == key for key in KNOWN)


def test_more_slips_than_two_are_another_word() -> None:
    assert find_nearest("training", ["trainign"]) == "trainign"
    assert find_nearest("precision", ["resolution"]) is None
    assert find_nearest("size", ["side"]) == "side"
    assert find_nearest("size", ["sode"]) is None
