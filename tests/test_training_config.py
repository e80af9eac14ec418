"""What `imprompt train` is told, and what it says to what it cannot do."""

from pathlib import Path
from typing import Any

import pytest

from imprompt.errors import ConfigError
from imprompt.training.config import TrainingConfig, load_config, parse_config
from imprompt.training.presets import PRESETS, merge_settings

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")
    if not path.stem.startswith("mini-") and "\npreset = " in path.read_text(encoding="utf-8")
)
LEAST: dict[str, Any] = {"preset": "sd15", "output": "run", "data": {"source": "pictures"}}


def config(**changes: Any) -> TrainingConfig:
    return parse_config(merge_settings(LEAST, changes), "cats.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_sound(path: Path) -> None:
    assert load_config(path).training.steps > 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sound(name: str) -> None:
    assert config(preset=name).preset == name


def test_the_papers_settings_are_the_preset_of_its_base() -> None:
    made = config()
    assert (made.training.learning_rate, made.training.weight_decay) == (1e-4, 0.01)
    assert (made.loss.image_drop, made.loss.text_drop, made.loss.both_drop) == (0.05, 0.05, 0.05)
    assert (made.data.size, made.data.buckets, made.training.batch_size) == (512, False, 64)
    assert (made.training.steps, made.adapter.tokens, made.training.ema_decay) == (1_000_000, 4, 0)


def test_what_is_said_lies_over_the_preset_group_by_group() -> None:
    made = config(training={"learning_rate": 2e-5})
    assert (made.training.learning_rate, made.training.weight_decay) == (2e-5, 0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"learning_rat": 1}},
            "unknown key 'learning_rat'; did you mean 'training.learning_rate'?",
        ),
        ({"learning_rate": 1}, "unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ({"trianing": {"steps": 3}}, "unknown key 'trianing'; did you mean 'training'?"),
        ({"training": {"steps": "many"}}, "training.steps must be a whole number, not 'many'"),
        ({"training": {"steps": 0}}, "training.steps must be greater than or equal to 1, not 0"),
        ({"adapter": {"variant": "pluss"}}, "adapter.variant must be 'base', 'plus'"),
        ({"preset": "sd1"}, "unknown preset 'sd1'; did you mean 'sd15'?"),
        ({"loss": {"image_drop": 0.6, "text_drop": 0.6}}, "image_drop + text_drop + both_drop is 1.25"),
        (
            {"adapter": {"mechanism": "concatenated", "variant": "plus"}},
            'adapter.mechanism "concatenated" goes with the variant "base", not "plus"',
        ),
        (
            {"adapter": {"mechanism": "unclip"}},
            'adapter.mechanism "unclip" trains the U-Net: training.precision must be "fp32", not "bf16"',
        ),
        (
            {"adapter": {"hidden": 8}},
            'adapter.hidden goes with adapter.mechanism "concatenated" or with the variant "flux-instantx"',
        ),
        (
            {"adapter": {"mechanism": "concatenated", "start": "x.bin"}},
            'adapter.start goes with adapter.mechanism "decoupled", not with "concatenated"',
        ),
        (
            {"training": {"base_learning_rate": 1e-4}},
            'training.base_learning_rate has no effect: adapter.mechanism "decoupled" leaves the base',
        ),
        ({"adapter": {"lora_rank": 8}}, "adapter.lora_rank goes with a face variant (faceid, faceid-plus"),
        (
            {"adapter": {"variant": "faceid", "lora_rank": 8, "start": "x.bin"}},
            "adapter.lora_rank comes from the file that adapter.start names",
        ),
        ({"training": {"batch_size": 6, "passes": 4}}, "batch_size 6 cannot be cut into 4 equal passes"),
        (
            {"data": {"source": ""}, "cache": {"enabled": False}},
            "data.source is empty and cache.enabled is false: there is nothing to train on",
        ),
        ({"watch": {"prompts": []}}, "watch.prompts must not be empty"),
        ({"watch": {"scales": []}}, "watch.scales must not be empty"),
        (
            {"data": {"buckets": True, "size": 500}},
            "data.size 500 is no multiple of data.bucket_step 64",
        ),
        (
            {"cache": {"enabled": False}, "training": {"loader_workers": 2}},
            "training.loader_workers 2 cannot read ahead while cache.enabled is false",
        ),
        ({"data": {"held_out": 1.5}}, "data.held_out is a share between 0 and 1, or another source, not 1.5"),
        (
            {"training": {"schedule": "cosine", "cooldown_steps": 5}},
            "training.schedule cosine has its own end",
        ),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert str(caught.value).startswith("cats.toml: ")
    assert message in str(caught.value)


def test_a_preset_must_be_named() -> None:
    with pytest.raises(ConfigError, match="preset is missing; the presets are: mini, mini-plus, mini-face"):
        parse_config({"output": "x"}, "cats.toml")


def test_a_missing_file_and_one_that_is_no_toml_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(ConfigError, match="no such recipe"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "broken.toml")


def test_a_setting_of_the_command_line_replaces_the_files(tmp_path: Path) -> None:
    path = tmp_path / "cats.toml"
    path.write_text('preset = "sd15"\noutput = "run"\n[data]\nsource = "pictures"\n')
    made = load_config(path, ["training.steps=5", "data.size=256", "watch.prompts=['', 'own']"])
    assert (made.training.steps, made.data.size, made.watch.prompts) == (5, 256, ("", "own"))
    with pytest.raises(ConfigError, match="output is a value, not a group"):
        load_config(path, ["output.folder=x"])


def test_the_mechanism_is_read_under_its_former_key_too() -> None:
    adapter = config(adapter={"injection": "concatenated"}).adapter
    assert adapter == config(adapter={"mechanism": "concatenated"}).adapter
