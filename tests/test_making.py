"""The embedded model's parts, trained for two steps on a few drawings; and the suite that measures them."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import load_embedded_recognizer, save_adapter
from imprompt.errors import ConfigError, UnknownModel
from imprompt.evaluation.judges.characters import CharacterJudge, build_network
from imprompt.inputs.encoder import load_image_encoder
from imprompt.inputs.recognizer import CharacterRecognizer
from imprompt.lab.making.batches import iterate_batches, to_pixels
from imprompt.lab.making.captions import build_caption_patterns
from imprompt.lab.making.characters import Character
from imprompt.lab.making.dataset import PEOPLE, Drawings, build_data, build_people
from imprompt.lab.making.exporting import export_people, export_samples
from imprompt.lab.making.labels import LABELS, NOT_DRAWN, measure_accuracies, to_labels
from imprompt.lab.making.lines import INK, PAPER, draw_lines
from imprompt.lab.making.objectives import base, control, style
from imprompt.lab.making.objectives.base import load_frozen_base
from imprompt.lab.making.objectives.judge import contrast, damage
from imprompt.lab.making.objectives.recognizer import contrast_with_margin
from imprompt.lab.making.recipe import StageRecipe, load_recipe, parse_recipe
from imprompt.lab.making.shipping import ship
from imprompt.lab.making.stages import train_stage
from imprompt.lab.making.views import IDENTITY, LEAST_STYLES, VIEWS
from imprompt.lab.making.vocabulary import load_vocabulary
from imprompt.lab.suite.against import compare_scores, load_earlier_report, read_scores
from imprompt.lab.suite.images import SMALL as SMALL_SUITE
from imprompt.lab.suite.images import ImageSettings, SuiteModels, SuiteSettings
from imprompt.lab.suite.measure import measure
from imprompt.lab.suite.scoring import Readings, count_copies, score_pictures
from imprompt.lab.suite.showcase import write_showcase
from imprompt.lab.suite.subjects import CHANGES, SPLITS, Subject, sample_subjects, select_suitable
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.projection import LinearProjection, PatchProjection, ResamplerProjection
from imprompt.training.config import DataSettings
from imprompt.training.loop import Run
from imprompt.training.mechanisms.shuffled_control import preserve_variance
from imprompt.training.samples import open_source
from imprompt.training.samples.layouts import Layout

SIZE = 32
SMALL: dict[str, dict[str, Any]] = {
    "codec": {"patch_size": 8, "latent_channels": 8, "steps": 4, "batch_size": 8},
    "decoder": {"widths": (8, 8, 8)},
    "base": {"widths": (16, 32), "heads": 2, "text_width": 64, "text_layers": 1},
    "encoder": {"width": 64, "layers": 1, "patch_size": 8, "embedding_dim": 32},
    "judge": {"widths": (8, 16), "depths": (1, 1)},
    "recognizer": {"hidden_dim": 16, "embedding_dim": 8},
    "control": {"embedding_widths": (4, 4, 4, 4)},
    "style": {"rank": 2},
}
ORDER = tuple(SMALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "characters"
    build_data(folder, {"training": 40, "combinations": 12, "parts": 12, "styles": 12}, size=SIZE)
    build_people(folder, {"training": 8, "combinations": 5}, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def make_recipe(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StageRecipe]:
    output = tmp_path_factory.mktemp("model")

    def build(stage: str, **more: Any) -> StageRecipe:
        loop = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "save_every": 1}
        values = {"stage": stage, "data": str(data), "output": str(output), **loop, **SMALL[stage], **more}
        return parse_recipe(values, "test")

    return build


@pytest.fixture(scope="module")
def model(make_recipe: Callable[..., StageRecipe]) -> Path:
    """Every part, after two steps."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (base, control, style):
            patch.setattr(module, "SHOWN_STEPS", 1)
        folders = {train_stage(make_recipe(stage)) for stage in ORDER}
    assert len(folders) == 1
    folder = folders.pop()
    assert folder is not None
    return folder


# Data


def test_drawings_come_back_with_their_characters(data: Path) -> None:
    drawings = Drawings(data, "training")
    assert drawings.pictures.shape == (40, SIZE, SIZE, 3)
    assert len(drawings) == len(drawings.characters) == 40
    assert not any(character.is_held_out for character in drawings.characters)
    assert all(character.is_held_out for character in Drawings(data, "parts").characters)


def test_people_come_in_views_that_share_what_makes_a_person(data: Path) -> None:
    views = Drawings(data / PEOPLE, "training")
    assert len(views) == 8 * VIEWS
    for start in range(0, len(views), VIEWS):
        person = views.characters[start : start + VIEWS]
        assert len({view.style for view in person}) >= LEAST_STYLES
        assert not any(view.is_held_out for view in person)
        for name in IDENTITY:
            assert len({view.attributes[name] for view in person if name in view.attributes}) <= 1
    assert all(view.is_held_out for view in Drawings(data / PEOPLE, "combinations").characters)


def test_a_right_pair_needs_a_smaller_angle_by_the_margin() -> None:
    views = torch.eye(4)
    assert contrast_with_margin(views, views, 16, 0.0) < contrast_with_margin(views, views, 16, 0.5)
    assert contrast_with_margin(views, views.roll(1, 0), 16, 0.2) > 10


def test_the_recognizers_gradient_is_finite_in_bfloat16() -> None:
    """Two equal views have a cosine of 1, which bfloat16 does not tell from 1 - 1e-6."""
    views = torch.nn.functional.normalize(torch.randn(4, 8), dim=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrast_with_margin(views, views.detach(), 16, 0.2)
    loss.backward()
    assert views.grad is not None
    assert views.grad.isfinite().all()


def test_a_recognizer_comes_back_and_embeds_pictures_of_any_size(model: Path) -> None:
    embedder = load_embedded_recognizer(model)
    face = embedder(Image.new("RGB", (50, 70), "red"))
    assert face.embedding.shape == (8,)
    assert face.embedding.norm() == pytest.approx(1, abs=1e-5)
    assert face.crop.size == (50, 70)
    with pytest.raises(UnknownModel, match="there is no recognizer in"):
        CharacterRecognizer.load(model / "judge")


def test_a_split_that_is_there_is_not_drawn_again(data: Path) -> None:
    before = (data / "parts" / "pictures.npy").stat().st_mtime_ns
    build_data(data, {"parts": 99}, size=SIZE)
    assert (data / "parts" / "pictures.npy").stat().st_mtime_ns == before


def test_data_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imprompt mini build-data"):
        Drawings(tmp_path, "training")


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    (first,), (again,) = (
        next(iterate_batches(40, 4, 1, range(7, 8))),
        next(iterate_batches(40, 4, 1, range(7, 8))),
    )
    assert first == again
    assert first.rows != next(iterate_batches(40, 4, 2, range(7, 8)))[0].rows
    assert first.make_random().random() == again.make_random().random()


def test_pixels_span_minus_one_to_one() -> None:
    pixels = to_pixels(np.array([[[[0, 255, 0]]]], dtype=np.uint8))
    assert pixels.flatten().tolist() == [-1, 1, -1]


def test_exported_samples_are_read_by_the_trainer(tmp_path: Path) -> None:
    export_samples(tmp_path / "made", layout="folder", count=20, held_out=3, seed=0, size=SIZE)
    parts = open_source(str(tmp_path / "made"), DataSettings(), 8)
    assert sum(map(len, parts)) == 20
    assert len(list((tmp_path / "made-held-out").glob("*.txt"))) == 3
    assert list((tmp_path / "made").glob("*.reference.png"))


@pytest.mark.parametrize(
    "layout",
    [
        "folder",
        pytest.param("official", marks=pytest.mark.slow),
        pytest.param("webdataset", marks=pytest.mark.slow),
    ],
)
def test_exported_people_have_another_view_as_reference_and_its_face(
    model: Path, tmp_path: Path, layout: Layout
) -> None:
    counts = {"count": 4, "held_out": 2, "seed": 0}
    export_people(tmp_path / "people", model, layout=layout, **counts, size=SIZE)
    source = tmp_path / "people"
    place = {"folder": source, "official": source / "data.json", "webdataset": source / "*.tar"}[layout]
    samples: list[Any] = [
        sample for part in open_source(str(place), DataSettings(), 8) for sample in part.samples()
    ]
    assert len(samples) == 4
    embedder = load_embedded_recognizer(model)
    for sample in samples:
        (reference,) = sample.references
        face = embedder(Image.open(io.BytesIO(reference)).convert("RGB")).embedding
        assert np.allclose(sample.face, face.numpy(), atol=1e-6)


# Parts


def test_every_part_is_written_in_the_format_that_loads_it(model: Path) -> None:
    pipe: Any = mini.pipeline(weights=model)
    pictures = pipe("toon style", num_inference_steps=2, output_type="np").images
    assert pictures.shape == (1, SIZE, SIZE, 3)
    assert np.isfinite(pictures).all()
    encoder = load_image_encoder(model / "image_encoder")
    assert encoder.model.config.projection_dim == 32
    assert mini.controlnet(weights=model).config["conditioning_embedding_out_channels"] == [4] * 4
    assert CharacterJudge.load(model / "judge").identity.out_features == 128


def test_the_base_has_the_decoder_of_the_codec(model: Path) -> None:
    alone, inside = (
        load_file(folder / "diffusion_pytorch_model.safetensors")
        for folder in (model / "vae", model / "base/vae")
    )
    assert any(name.startswith("detail.") for name in alone)
    assert all(torch.equal(alone[name], inside[name]) for name in alone)


@pytest.mark.parametrize("stage", ORDER[1:])
def test_a_part_reports_finite_figures_on_what_it_has_not_seen(model: Path, stage: str) -> None:
    lines = (model / "runs" / stage / "log.jsonl").read_text().splitlines()
    figures = [json.loads(line) for line in lines if "event" not in json.loads(line)]
    assert {"loss"} <= set().union(*figures)
    assert all(np.isfinite(value) for line in figures for value in line.values())


def test_the_style_is_a_lora_that_changes_the_base(model: Path) -> None:
    plain, lines = mini.pipeline(weights=model), mini.pipeline(style="lines", weights=model)
    assert isinstance(plain.unet, UNet2DConditionModel)
    before, after = plain.unet.state_dict(), lines.unet.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_stage_goes_on_where_it_stopped_or_begins(
    make_recipe: Callable[..., StageRecipe], model: Path, tmp_path: Path
) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert train_stage(make_recipe("judge", output=str(whole)), resume=True) == whole
    train_stage(make_recipe("judge", output=str(half), steps=1, cooldown_steps=0))
    train_stage(make_recipe("judge", output=str(half)), resume=True)
    one, other = (load_file(folder / "judge" / "heads.safetensors") for folder in (whole, half))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stage_that_is_stopped_has_made_no_model(
    make_recipe: Callable[..., StageRecipe], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "should_stop", lambda run: run.step == 1)
    assert train_stage(make_recipe("judge", output=str(tmp_path))) is None
    assert (tmp_path / "runs" / "judge" / "checkpoints").is_dir()
    assert not (tmp_path / "judge").exists()


def test_a_part_that_a_model_has_not_yet_is_the_embedded_one(model: Path, tmp_path: Path) -> None:
    assert mini.find_part(model, "judge") == model / "judge"
    assert mini.find_part(tmp_path, "judge") == mini.WEIGHTS / "judge"
    with pytest.raises(UnknownModel, match="the embedded model's transformer is not in"):
        mini.find_part(tmp_path, "transformer")


def test_a_base_that_is_read_for_a_later_part_is_frozen(model: Path, tmp_path: Path) -> None:
    own, embedded = (load_frozen_base(folder) for folder in (model, tmp_path))
    assert own.unet.config.block_out_channels != embedded.unet.config.block_out_channels
    for pipe in (own, embedded):
        parts = pipe.unet, pipe.text_encoder, pipe.vae
        assert all(weight.dtype == torch.float32 for part in parts for weight in part.parameters())
        assert not any(weight.requires_grad for part in parts for weight in part.parameters())


@pytest.mark.parametrize(
    "stage", [get_args(recipe.model_fields["stage"].annotation)[0] for recipe in StageRecipe.__subclasses__()]
)
def test_the_recipe_of_every_stage_is_valid(stage: str) -> None:
    assert load_recipe(Path("recipes", f"mini-{stage}.toml")).model_dump()["stage"] == stage


def test_an_unknown_key_of_a_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown key 'latent_chanels'; did you mean 'latent_channels'"):
        parse_recipe({"stage": "codec", "steps": 1, "latent_chanels": 3}, "here")


# Autoencoder


def test_detail_begins_as_nothing() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1
    linear = PatchAutoencoder.fit(pixels, latent_channels=6, patch_size=8)
    detailed = linear.with_detail((8, 4, 4))
    latents = linear.encode(pixels).latent_dist.mode()  # type: ignore[union-attr]
    assert torch.equal(linear.decode(latents).sample, detailed.decode(latents).sample)  # type: ignore[union-attr]


def test_a_patch_of_16_shrinks_pictures_16_times_for_every_pipeline() -> None:
    codec = PatchAutoencoder.fit(torch.rand(20, 3, 32, 32), latent_channels=4, patch_size=16)
    assert 2 ** (len(codec.config["block_out_channels"]) - 1) == 16
    assert codec.encode(torch.rand(1, 3, 32, 32)).latent_dist.mode().shape == (1, 4, 2, 2)  # type: ignore[union-attr]


# Judge


def test_labels_are_places_in_the_vocabulary() -> None:
    words = load_vocabulary().words
    character = Character("dylan", {"hair": "black", "skin": "tan", "hairdo": "long", "ground": "white"})
    (labels,) = to_labels([character]).tolist()
    told = dict(zip(LABELS, labels, strict=True))
    assert words("style")[told["style"]] == "dylan"
    assert words("hairdo")[told["hairdo"]] == "long"
    assert told["clothes"] == told["robot"] == NOT_DRAWN
    assert to_labels([Character("lorelei")])[0, 0] == NOT_DRAWN


def test_accuracy_is_over_those_that_have_the_attribute() -> None:
    labels = torch.full((3, len(LABELS)), NOT_DRAWN)
    labels[:2, 0] = torch.tensor([0, 1])
    scores = {name: torch.zeros(3, 4) for name in LABELS}
    scores["style"][:, 1] = 1.0
    assert measure_accuracies([scores], labels) == {"style": 0.5}


def test_contrast_is_smallest_for_matching_views() -> None:
    views = torch.nn.functional.normalize(
        torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    assert contrast(views, views, 0.1) < contrast(views, views.roll(1, 0), 0.1)


def test_damage_is_of_the_generator_and_stays_in_range() -> None:
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    one, again, other = (damage(pixels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 1


def test_a_judge_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = CharacterJudge(build_network((8, 16), (1, 1), 4, 32), build_caption_patterns()).eval()
    judge.save(tmp_path)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    again = CharacterJudge.load(tmp_path)
    assert torch.allclose(judge.embed(pixels), again.embed(pixels), atol=1e-6)
    assert judge.read(pixels) == again.read(pixels)


def test_no_judge_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="there is no judge in"):
        CharacterJudge.load(tmp_path)


def test_line_drawings_are_ink_on_paper() -> None:
    flat = draw_lines(torch.full((1, 3, 16, 16), 0.3))
    assert torch.allclose(flat[0, :, 8, 8] / 2 + 0.5, torch.tensor(PAPER), atol=1e-6)
    halves = torch.full((1, 3, 16, 16), -1.0)
    halves[..., 8:] = 1.0
    assert torch.allclose(draw_lines(halves)[0, :, 8, 8] / 2 + 0.5, torch.tensor(INK), atol=1e-6)


# Shipping


def test_the_shipped_model_is_the_trained_one_in_float16(model: Path, tmp_path: Path) -> None:
    assert ship(model, tmp_path, adapter=write_adapter(model, tmp_path, LinearProjection(32, 64, 4))) > 0
    trained, shipped = (mini.controlnet(weights=folder).state_dict() for folder in (model, tmp_path))
    assert all(torch.equal(trained[name].half().float(), shipped[name]) for name in trained)
    assert mini.pipeline(weights=tmp_path).unet.dtype == torch.float32
    assert mini.adapter(weights=tmp_path).projection.tokens == 4
    assert (tmp_path / "styles" / "lines").is_dir()


def test_each_variant_ships_under_its_own_name_and_leaves_the_other(model: Path, tmp_path: Path) -> None:
    for projection in (LinearProjection(32, 64, 4), ResamplerProjection(64, 64, 16)):
        ship(model, tmp_path / "weights", adapter=write_adapter(model, tmp_path, projection))
    adapters = [mini.adapter(name, weights=tmp_path / "weights") for name in ("mini", "mini-plus")]
    assert [adapter.projection.tokens for adapter in adapters] == [4, 16]


def test_a_variant_that_does_not_ship_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(model, tmp_path, PatchProjection(64, 64, 17))
    with pytest.raises(ConfigError, match="is a full-face adapter; the embedded model ships base and plus"):
        ship(model, tmp_path / "weights", adapter=adapter)
    assert not (tmp_path / "weights").exists()


def test_what_ships_twice_is_the_same_to_the_byte_and_does_not_tell_where_it_was_made(
    model: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        ship(model, folder)
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    assert not any(str(model) in path.read_text() for path in one.rglob("*.json"))


def test_an_unfinished_model_and_a_missing_adapter_do_not_ship(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no base, image_encoder, judge yet"):
        ship(tmp_path, tmp_path / "weights")
    with pytest.raises(ConfigError, match=r"no adapter .*none\.safetensors: train it"):
        ship(model, tmp_path / "weights", adapter=tmp_path / "none.safetensors")
    assert not (tmp_path / "weights").exists()


def write_adapter(model: Path, folder: Path, projection: Any) -> Path:
    """An untrained adapter for the model, as a file."""
    adapter = ImagePromptAdapter.for_unet(mini.pipeline(weights=model).unet, projection)
    save_adapter(adapter, folder / f"{projection.tokens}.safetensors")
    return folder / f"{projection.tokens}.safetensors"


# Suite


def subject(**attributes: str) -> Subject:
    known = {"hair": "pink", "skin": "dark", "hairdo": "bob", "glasses": "none", "ground": "white"}
    return Subject(0, "combinations", Character("open-peeps", known | attributes), Image.new("RGB", (32, 32)))


def readings(**words: str) -> Readings:
    known = {
        "style": "open-peeps",
        "hair": "pink",
        "skin": "dark",
        "hairdo": "bob",
        "glasses": "none",
        "ground": "white",
    }
    return Readings({name: [word] for name, word in (known | words).items()}, torch.ones(1, 1))


def test_a_picture_with_every_attribute_has_kept_all() -> None:
    (score,) = score_pictures([subject()], readings(), readings(), condition="x", scale=1.0)
    assert (score.kept, score.all_kept, score.asked, score.wrong) == (1.0, True, None, "")


def test_a_folder_without_a_report_is_not_compared_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no report"):
        load_earlier_report(tmp_path, SuiteSettings())


def test_what_is_read_otherwise_is_not_kept() -> None:
    read = readings(hair="blue", skin="tan")
    (score,) = score_pictures([subject()], read, readings(), condition="x", scale=1.0)
    assert score.kept == pytest.approx(4 / 6)
    assert score.wrong == "hair=blue skin=tan"


def test_what_a_text_changes_is_asked_for_and_not_kept() -> None:
    read = readings(glasses="sunglasses")
    change = CHANGES["sunglasses"]
    (score,) = score_pictures([subject()], read, readings(), condition="x", scale=1.0, change=change)
    assert (score.kept, score.asked) == (1.0, True)


def test_a_text_suits_those_who_lack_what_it_asks_for() -> None:
    assert CHANGES["sunglasses"].suits(subject().character)
    assert not CHANGES["sunglasses"].suits(subject(glasses="sunglasses").character)
    assert not CHANGES["red ground"].suits(subject(hair="red").character), "red hair melts into it"
    assert not CHANGES["pixel-art"].suits(subject(hairdo="dreadlocks").character), "pixel art has none"


def test_subjects_are_unseen_and_the_same_every_time() -> None:
    one, again = sample_subjects("combinations", 5), sample_subjects("combinations", 5)
    assert [x.character for x in one] == [x.character for x in again]
    assert all(x.character.is_held_out for x in one)
    assert all(CHANGES["sunglasses"].suits(x.character) for x in select_suitable(one, CHANGES["sunglasses"]))


@pytest.mark.slow
def test_the_suite_measures_a_model_and_writes_its_report(model: Path, tmp_path: Path) -> None:
    pipe = mini.pipeline(weights=model)
    encoder = load_image_encoder(model / "image_encoder")
    torch.manual_seed(0)
    adapter = ImagePromptAdapter.for_unet(pipe.unet, LinearProjection(32, 64, 2))
    adapter.image_encoder = encoder
    models = SuiteModels(pipe, adapter, CharacterJudge.load(model / "judge"), "untrained")
    settings = SuiteSettings(6, 3, 4, 2, 2, ImageSettings(steps=2, batch_size=8))
    shown = replace(models, controlnet=mini.controlnet(weights=model))
    write_showcase(shown, sample_subjects("combinations", 3), settings.paint, tmp_path)
    with Image.open(tmp_path / "readme.png") as figure, Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert figure.width > 7 * 128 > sheet.width / 4
    findings = measure(models, settings, output=tmp_path)
    again = compare_scores(read_scores(tmp_path / "scores.csv"), load_earlier_report(tmp_path, settings))
    assert again.name == "untrained"
    assert len(again.differences) == 2 * len(SPLITS) + 2 * len(CHANGES)
    assert all((one.low, one.mean, one.high) == (0, 0, 0) for one in again.differences.values())
    with pytest.raises(ConfigError, match="subjects was 6 there and is 24 here"):
        load_earlier_report(tmp_path, SMALL_SUITE)
    combinations = findings.splits["combinations"]
    assert set(combinations.kept) >= {"λ = 0", "λ = 1", "another reference", "the drawing itself"}
    assert combinations.found["the drawing itself"].mean == 1.0
    assert all(0 <= value.mean <= 1 for value in combinations.kept.values())
    assert (tmp_path / "index.html").stat().st_size > 10_000
    assert "untrained" in (tmp_path / "index.html").read_text()
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    texts = sum(5 * found.subjects for found in findings.texts.values())
    assert len(rows) == 1 + 3 * 6 * 6 + texts


def test_copies_of_training_drawings_are_told_from_what_is_new(model: Path, data: Path) -> None:
    drawings, judge = Drawings(data, "training").pictures, CharacterJudge.load(model / "judge")
    noise = Image.effect_noise((SIZE, SIZE), 100).convert("RGB")
    copies = count_copies(judge, [Image.fromarray(drawings[0])], [noise], data)
    assert copies is not None
    assert (copies["pictures"].mean, copies["unseen drawings"].mean) == (1, 0)
    assert 0 <= copies["light copies of training drawings"].mean <= 1


def test_without_training_drawings_copies_are_unknown(model: Path, tmp_path: Path) -> None:
    assert count_copies(CharacterJudge.load(model / "judge"), [], [], tmp_path) is None


def test_edges_reach_the_last_layer_of_the_controlnets_embedding() -> None:
    torch.manual_seed(0)
    embedding = ControlNetConditioningEmbedding(160, block_out_channels=(16, 32, 64, 96, 128))
    preserve_variance(embedding)
    received: list[Tensor] = []
    embedding.conv_out.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0].detach()))
    edges = (torch.rand(2, 3, 128, 128) > 0.9).float()
    assert not embedding(edges).any()  # the last layer is zero, so that training begins at the base
    assert float((received[0][0] - received[0][1]).std()) > 0.05
