"""The trainer: batches, recipes, the loop, and the whole chain from pictures to a model that generates."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imprompt import Reference, mini
from imprompt.adapter import ImagePromptAdapter
from imprompt.checkpoint import EMBEDDED, save_adapter
from imprompt.errors import ConfigError, UnknownModel
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.projection import ImageProjection, LinearProjection, PatchProjection, ResamplerProjection
from imprompt.training.captions import GROUNDS
from imprompt.training.data import EmojiBatches, EmojiPictures
from imprompt.training.emoji import STYLES, is_held_out, slug
from imprompt.training.loop import Run
from imprompt.training.objectives import autoencoding, build_objective, controlling, denoising, styling
from imprompt.training.objectives.denoising import build_scheduler, sample_timesteps
from imprompt.training.recipe import Mixture, Recipe, load_recipe, parse_recipe
from imprompt.training.shipping import PARTS, ship
from imprompt.training.stages import stage_run, train_stage
from imprompt.training.styles import styled_pictures
from toy_pictures import write_toy_data

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("mini-*.toml"))

ADAPTER_FILE = Path("adapter", EMBEDDED["mini"].file)
"""Where the first adapter lies in a model's folder."""

TINY = {"steps": 2, "batch_size": 8, "log_every": 1, "save_every": 1, "sample_every": 2, "warmup_steps": 1}
STAGES = {
    "codec": {"latent_channels": 8},
    "pair": {"text_width": 64, "text_layers": 1, "image_width": 64, "image_layers": 1, "vocabulary": 600},
    "base": {"widths": [16, 32], "heads": 2},
    "style": {"rank": 2, "mixture": {"placed": 0, "paired": 0}},
    "control": {"embedding_widths": [4, 4, 8, 8]},
    "decoder": {"width": 8},
    "judge": {"widths": [8, 16], "depths": [1, 1]},
    "judge-text": {"width": 32, "layers": 1, "vocabulary": 600},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module", autouse=True)
def short_looks() -> Iterator[None]:
    """The toy data has eight held-out pictures, not hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (denoising, styling, controlling):
            patch.setattr(module, "SHOWN_STEPS", 2)
        for module in (denoising, styling, autoencoding):
            patch.setattr(module, "LOOK", 16)
        yield


@pytest.fixture(scope="module")
def model(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole embedded model, made by two steps of every stage."""
    output = tmp_path_factory.mktemp("model")
    for stage in STAGES:
        train_stage(recipe(stage, toy, output))
    write_adapter(output)
    return output


def write_adapter(model: Path) -> None:
    """An adapter as `imprompt train` would leave it, without its steps."""
    (model / "adapter").mkdir()
    random = torch.Generator().manual_seed(0)
    save_adapter(new_adapter(model, LinearProjection(256, 64, 4, generator=random)), model / ADAPTER_FILE)


def new_adapter(model: Path, projection: ImageProjection) -> ImagePromptAdapter:
    unet: Any = mini.pipeline(weights=model).unet
    return ImagePromptAdapter.for_unet(unet, projection)


def recipe(stage: str, data: Path, output: Path, **changes: object) -> Recipe:
    settings = {"stage": stage, "data": str(data), "output": str(output), **TINY, **STAGES[stage], **changes}
    return parse_recipe(settings, "test")


# Data


@given(seed=st.integers(0, 9), step=st.integers(0, 50))
def test_a_batch_is_a_pure_function_of_seed_and_step(toy: Path, seed: int, step: int) -> None:
    one, other = (EmojiBatches(EmojiPictures(toy), 4, seed=seed)[step] for _ in range(2))
    assert torch.equal(one.pixels, other.pixels)
    assert one.captions == other.captions


def test_every_drawing_comes_once_in_an_epoch(toy: Path) -> None:
    pictures = EmojiPictures(toy)
    batches = EmojiBatches(pictures, 3, seed=0)
    rows = [row for step in range(len(pictures)) for row in batches.rows(step)]
    for epoch in range(3):
        assert sorted(rows[epoch * len(pictures) : (epoch + 1) * len(pictures)]) == list(range(len(pictures)))


def test_no_concept_is_on_both_sides_of_the_split(toy: Path) -> None:
    seen, unseen = ({d.concept for d in EmojiPictures(toy, held_out=side).drawings} for side in (False, True))
    assert not seen & unseen
    assert all(map(is_held_out, unseen))


def test_a_tenth_of_all_names_is_held_out() -> None:
    share = sum(is_held_out(f"concept {i}") for i in range(5000)) / 5000
    assert 0.08 < share < 0.12


def test_a_caption_that_names_a_ground_stands_on_that_ground(toy: Path) -> None:
    batches = EmojiBatches(EmojiPictures(toy), 64, seed=0, mixture=Mixture(placed=0.3, paired=0.3))
    batch = batches[0]
    named = [
        (p, c.split(" on a ")[1].split()[0])
        for p, c in zip(batch.pixels, batch.captions, strict=True)
        if " on a " in c
    ]
    assert len(named) > 20
    for pixels, ground in named:
        corners = (pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]] + 1) * 127.5
        distance = (corners - torch.tensor(GROUNDS[ground])[:, None]).abs().amax(dim=0)
        assert distance.min() < 20, ground


def test_the_reference_is_the_target_unless_a_changed_ground_is_asked_for(toy: Path) -> None:
    same = EmojiBatches(EmojiPictures(toy), 16, seed=0)[0]
    changed = EmojiBatches(
        EmojiPictures(toy), 16, seed=0, mixture=Mixture(placed=0.0, paired=0.0, changed_ground=1.0)
    )[0]
    assert torch.equal(same.pixels, same.reference_pixels)
    assert not torch.equal(changed.pixels, changed.reference_pixels)


def test_a_nameless_caption_says_ground_and_style_and_not_what_is_drawn(toy: Path) -> None:
    mixture = Mixture(placed=0.0, paired=0.0, nameless=1.0)
    captions = EmojiBatches(EmojiPictures(toy), 64, seed=0, mixture=mixture)[0].captions
    styles = [f"{style} style" for style in STYLES.values()]
    grounds = [f"on a {ground} background" for ground in GROUNDS]
    assert all(set(caption.split(", ")) <= {"", *styles, *grounds} for caption in captions)
    assert any("on a" in caption for caption in captions)


@pytest.mark.parametrize(
    ("label", "icon"), [("woman’s hat", "womans-hat"), ("piñata", "pinata"), ("keycap: 4", "keycap-4")]
)
def test_labels_are_spelt_as_the_icon_sets_spell_them(label: str, icon: str) -> None:
    assert slug(label) == icon


def test_the_vocabulary_is_the_same_in_every_process() -> None:
    program = (
        "from imprompt.training.vocabulary import train_tokenizer as train\n"
        "captions = ['a red disc, noto style', 'grinning face, on a blue background'] * 9\n"
        "said = str(sorted(train(captions, size=700, length=24).get_vocab().items()))"
    )
    here: dict[str, str] = {}
    exec(program, here)
    there = subprocess.run([sys.executable, "-c", f"{program}; print(said)"], capture_output=True, text=True)
    assert there.stdout.strip() == here["said"]
    assert "background</w>" in here["said"]


# The codec


@given(seed=st.integers(0, 100))
def test_latents_survive_a_round_trip_through_the_codec(toy: Path, seed: int) -> None:
    codec = PatchAutoencoder.fit(EmojiBatches(EmojiPictures(toy), 16, seed=0)[0].pixels, latent_channels=8)
    latents = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        again = codec.encode(codec.decode(latents).sample).latent_dist.mode()  # type: ignore[union-attr]
    torch.testing.assert_close(again, latents, rtol=1e-3, atol=1e-3)


def test_more_channels_rebuild_better(toy: Path) -> None:
    pixels = EmojiBatches(EmojiPictures(toy), 32, seed=0)[0].pixels
    errors = []
    for channels in (2, 8, 24):
        codec = PatchAutoencoder.fit(pixels, latent_channels=channels)
        with torch.no_grad():
            again = codec.decode(codec.encode(pixels).latent_dist.mode()).sample  # type: ignore[union-attr]
        errors.append(float((again - pixels).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_the_refinement_begins_as_nothing_and_leaves_the_latents_alone(toy: Path) -> None:
    pixels = EmojiBatches(EmojiPictures(toy), 8, seed=0)[0].pixels
    plain = PatchAutoencoder.fit(pixels, latent_channels=8)
    refined = PatchAutoencoder(latent_channels=8, refine_width=8)
    refined.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        latents = plain.encode(pixels).latent_dist.mode()  # type: ignore[union-attr]
        assert torch.equal(refined.encode(pixels).latent_dist.mode(), latents)  # type: ignore[union-attr]
        assert torch.equal(refined.decode(latents).sample, plain.decode(latents).sample)  # type: ignore[union-attr]


# The schedule


def test_the_schedule_ends_without_signal() -> None:
    assert float(build_scheduler().alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-7)


def test_times_are_inside_the_schedule() -> None:
    timesteps = sample_timesteps(10_000, torch.Generator().manual_seed(0))
    assert int(timesteps.min()) >= 0
    assert int(timesteps.max()) <= 999


# Recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_sound(path: Path) -> None:
    assert load_recipe(path).steps > 0


def test_settings_replace_what_the_recipe_says() -> None:
    changed = load_recipe(RECIPES[0], ["seed=7", "mixture.placed=0.25", "output=elsewhere"])
    assert (changed.seed, changed.mixture.placed, changed.output) == (7, 0.25, "elsewhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learning_rat=1"], "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        (["steps=0"], "steps"),
        (["batch_size=many"], "batch_size"),
        (["mixture.place=0.1"], "unknown key 'place'; did you mean 'mixture.placed'?"),
        (["stage=unet"], "unet"),
        (["seed"], "--set takes key=value"),
    ],
)
def test_a_wrong_setting_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(next(p for p in RECIPES if p.stem == "mini-base"), settings)
    assert message in str(caught.value)


def test_a_missing_recipe_and_one_that_is_no_toml_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(tmp_path / "broken.toml")


def test_missing_pictures_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imprompt mini build-data"):
        EmojiPictures(tmp_path)


# The loop


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(toy: Path, model: Path, tmp_path: Path) -> None:
    settings = recipe("base", toy, model, steps=4, sample_every=100, save_every=100)
    whole = run(settings, tmp_path / "whole")
    whole.go()
    first = run(settings, tmp_path / "parts")
    go(first, 2)
    first.save()
    second = run(settings, tmp_path / "parts")
    assert second.resume()
    second.go()
    assert all(map(torch.equal, whole.descent.trained, second.descent.trained))
    assert all(map(torch.equal, whole.descent.averaged, second.descent.averaged))


def test_resuming_what_never_ran_is_an_error(toy: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        train_stage(recipe("judge", toy, model / "elsewhere"), resume=True)


@pytest.mark.parametrize("stage", ["style", "control"])
def test_what_stands_beside_the_base_is_trained_alone_and_resumed_exactly(
    toy: Path, model: Path, tmp_path: Path, stage: str
) -> None:
    settings = recipe(stage, toy, model, steps=4, sample_every=100, save_every=100)
    whole, first, second = (run(settings, tmp_path / name) for name in ("whole", "parts", "parts"))
    trained = {id(weight) for weight in whole.descent.trained}
    frozen = [weight for weight in whole.objective.parameters() if id(weight) not in trained]
    before = [weight.clone() for weight in frozen]
    begun = [weight.clone() for weight in whole.descent.trained]
    go(whole, 4)
    assert len(frozen) > 50
    assert all(map(torch.equal, frozen, before))
    assert sum(map(torch.equal, begun, whole.descent.trained)) < len(begun) / 10
    for training in (first, second):
        if training is second:
            assert training.resume()
        go(training, 2)
        training.save()
    assert all(map(torch.equal, whole.descent.trained, second.descent.trained))


def test_a_controlnet_and_a_style_begin_as_nothing(toy: Path, model: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        control, style = (
            run(recipe(stage, toy, model), tmp_path).objective.held_out() for stage in ("control", "style")
        )
    assert abs(control["gap to shuffled"]) < 1e-6
    assert style["held-out loss"] == pytest.approx(style["held-out loss of the base"], abs=1e-6)


def test_the_trained_style_is_reached_by_name_and_leaves_a_plain_u_net(model: Path) -> None:
    plain, styled = mini.pipeline(weights=model), mini.pipeline(style="blueprint", weights=model)
    ours, theirs = (pipe.unet.state_dict() for pipe in (plain, styled))
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["conv_in.weight"], theirs["conv_in.weight"])
    with pytest.raises(UnknownModel, match="no style 'neon'; the styles are: blueprint"):
        mini.pipeline(style="neon", weights=model)


def test_the_trained_controlnet_works_in_diffusers_pipeline(model: Path) -> None:
    control = mini.controlnet(weights=model)
    pipe: Any = mini.as_pipeline(
        StableDiffusionControlNetPipeline, mini.pipeline(weights=model), controlnet=control
    )
    picture = Image.new("RGB", (80, 40), "teal")
    assert pipe("", image=mini.edge_picture(picture), num_inference_steps=2).images[0].size == (64, 64)


def test_an_unknown_style_is_named(toy: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="no style 'neon'; the styles are: blueprint"):
        build_objective(recipe("style", toy, model, style="neon"), model)


def test_a_blueprint_is_blue_whatever_the_drawing(toy: Path) -> None:
    plain, drawn = EmojiPictures(toy), styled_pictures("blueprint", toy)
    rows = list(range(len(plain)))
    pixels = drawn.on_ground(rows, torch.zeros(len(rows), 3))
    red, _, blue = pixels.unbind(1)
    assert pixels.shape == plain.plain(rows).shape
    assert pixels.abs().max() <= 1
    assert (blue >= red - 1e-6).all()
    assert torch.equal(pixels, drawn.on_ground(rows, torch.full((len(rows), 3), 255.0)))


def test_a_run_leaves_a_log_and_sample_grids(model: Path) -> None:
    for stage in ("base", "style", "control"):
        lines = [json.loads(line) for line in (model / "runs" / stage / "log.jsonl").read_text().splitlines()]
        assert any("loss" in line for line in lines)
        assert any("held-out loss" in line for line in lines)
        assert (model / "runs" / stage / "samples" / "000002.png").stat().st_size > 0


def test_the_trained_model_generates(model: Path) -> None:
    pipe: Any = mini.pipeline(weights=model)
    adapter = mini.adapter(weights=model)
    embedding = torch.randn(
        1, adapter.projection.takes["image_embedding"], generator=torch.Generator().manual_seed(0)
    )
    with adapter.attach(pipe), adapter.references(Reference(embedding)):
        picture = pipe("red disc", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)


def test_the_shipped_model_is_the_trained_one_in_float16(model: Path, tmp_path: Path) -> None:
    assert ship(model, tmp_path, adapter=model / ADAPTER_FILE) > 0
    trained, shipped = (mini.adapter(weights=folder).state_dict() for folder in (model, tmp_path))
    assert all(torch.equal(trained[name].half().float(), shipped[name]) for name in trained)
    assert mini.pipeline(weights=tmp_path).unet.dtype == torch.float32


def test_each_variant_ships_under_its_own_name_and_leaves_the_other(model: Path, tmp_path: Path) -> None:
    plus, weights = tmp_path / "plus.safetensors", tmp_path / "weights"
    save_adapter(new_adapter(model, ResamplerProjection(64, 64, 16)), plus)
    ship(model, weights, adapter=model / ADAPTER_FILE)
    ship(model, weights, adapter=plus)
    tokens = [mini.adapter(name, weights=weights).projection.tokens for name in ("mini", "mini-plus")]
    assert tokens == [4, 16]


def test_a_variant_that_does_not_ship_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path
) -> None:
    save_adapter(new_adapter(model, PatchProjection(64, 64, 17)), tmp_path / "face.safetensors")
    with pytest.raises(ConfigError, match="is a full-face adapter; what ships is base and plus"):
        ship(model, tmp_path / "weights", adapter=tmp_path / "face.safetensors")
    assert not (tmp_path / "weights").exists()


def test_what_ships_twice_is_the_same_to_the_byte(model: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        ship(model, folder, adapter=model / ADAPTER_FILE)
    files = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_what_ships_does_not_tell_where_it_was_made(model: Path, tmp_path: Path) -> None:
    config = model / "base" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(model)}))
    ship(model, tmp_path)
    assert not any(str(model) in path.read_text() for path in tmp_path.rglob("*.json"))
    assert mini.pipeline(weights=tmp_path).vae is not None


def test_style_and_controlnet_ship_if_they_have_been_trained(model: Path, tmp_path: Path) -> None:
    ship(model, tmp_path / "whole")
    trained, shipped = (
        mini.controlnet(weights=folder).state_dict() for folder in (model, tmp_path / "whole")
    )
    assert all(torch.equal(trained[name].half().float(), shipped[name]) for name in trained)
    assert (tmp_path / "whole" / "styles" / "blueprint").is_dir()
    for part in PARTS:
        shutil.copytree(model / part, tmp_path / "parts" / part)
    (tmp_path / "weights" / "control").mkdir(parents=True)
    ship(tmp_path / "parts", tmp_path / "weights")  # no adapter is given: none is there
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == sorted([*PARTS, "control"])


def test_an_unfinished_model_does_not_ship(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no base, image_encoder, judge yet"):
        ship(tmp_path, tmp_path / "weights")


def test_an_adapter_that_is_not_there_does_not_ship(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no adapter .*none\.safetensors: train it"):
        ship(model, tmp_path / "weights", adapter=tmp_path / "none.safetensors")
    assert not (tmp_path / "weights").exists()


def run(recipe: Recipe, folder: Path) -> Run:
    output = Path(recipe.output)
    training = stage_run(recipe, output, build_objective(recipe, output))
    training.folder, training.checkpoints.folder = folder, folder / "checkpoints"
    return training


def go(training: Run, steps: int) -> None:
    """Take some steps, without looking or saving."""
    for passes in training.feed(range(training.step, training.step + steps)):
        training.train_step(passes)
