"""The figures of the embedded model: an untrained one makes them all; verdicts follow from numbers."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image, ImageFont, ImageOps

import tiny
from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import EMBEDDED, save_adapter
from imprompt.errors import UnknownModel
from imprompt.evaluation.judges.characters import CharacterJudge, build_network
from imprompt.inputs.encoder import ImageEncoder
from imprompt.lab.figures import FigureSettings, evaluate_figures, make_figures
from imprompt.lab.figures.figure import Figure, build_criterion, build_figure, load_texts
from imprompt.lab.figures.images import FigureImages, sample_suitable
from imprompt.lab.figures.measures import (
    find_edges,
    list_differences,
    measure_closeness,
    measure_correlations,
    measure_edge_correlations,
    measure_seed_differences,
    read_shares,
)
from imprompt.lab.figures.page import write_section
from imprompt.lab.figures.panels import PANELS, draw_fine_tuned, draw_inpainting, draw_variations
from imprompt.lab.figures.people import (
    PeopleGalleries,
    draw_again,
    draw_others,
    find_free_attributes,
    sample_people,
)
from imprompt.lab.making.captions import build_caption_patterns
from imprompt.lab.making.characters import Character
from imprompt.lab.making.drawing import draw
from imprompt.lab.making.objectives.base import build_scheduler
from imprompt.lab.making.views import IDENTITY
from imprompt.lab.making.vocabulary import ATTRIBUTES
from imprompt.lab.suite.images import ImageSettings, SuiteModels
from imprompt.lab.suite.scoring import Readings
from imprompt.lab.suite.showcase import COLUMNS
from imprompt.lab.suite.structure import draw_line_pictures, measure_line_shares
from imprompt.lab.suite.subjects import CHANGES, Subject
from imprompt.projection import LinearProjection

SIZE = 32
QUICK = FigureSettings(subjects=3, shown=2, paint=ImageSettings(steps=2, batch_size=2))


def build_pipeline(seed: int) -> Any:
    """An untrained base of 32 px pictures, with as many transformers as the embedded one."""
    codec = mini.PatchAutoencoder.fit(
        torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1, latent_channels=8
    )
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=tiny.SD_CONTEXT,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return mini.assemble(codec, tiny.text_model(), tiny.tokenizer(), unet.eval(), build_scheduler())


@pytest.fixture(scope="module")
def models() -> SuiteModels:
    pipe = build_pipeline(0)
    adapters = []
    for tokens in (2, 4):
        torch.manual_seed(tokens)
        adapter = ImagePromptAdapter.for_unet(
            pipe.unet, LinearProjection(tiny.EMBEDDING_DIM, tiny.SD_CONTEXT, tokens)
        )
        adapter.image_encoder = ImageEncoder(tiny.vision_model())
        adapters.append(adapter.requires_grad_(False))
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 4))
    judge = CharacterJudge(build_network((8, 16), (1, 1), 4, SIZE), build_caption_patterns()).eval()
    return SuiteModels(
        pipe,
        adapters[0],
        judge,
        "untrained",
        plus=adapters[1],
        controlnet=control,
        fine_tuned=build_pipeline(1),
    )


@pytest.fixture(scope="module")
def images(models: SuiteModels) -> FigureImages:
    return build_images(models, QUICK)


def build_images(models: SuiteModels, settings: FigureSettings) -> FigureImages:
    return FigureImages(models, settings, sample_suitable([CHANGES["red ground"]], settings.subjects))


# All figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def figures(models: SuiteModels, folder: Path) -> list[Figure]:
    return make_figures(models, QUICK, output=folder)


def test_one_call_makes_every_figure_and_the_page(figures: list[Figure], folder: Path) -> None:
    assert [figure.name for figure in figures] == list(load_texts())
    assert len(figures) == len(PANELS) + 1 == 10
    text = (folder / "README.md").read_text(encoding="utf-8")
    for figure in figures:
        assert f"]({figure.name}.jpg)" in text
        assert f"| {figure.texts['title']} | {figure.verdict} |" in text
        with Image.open(folder / f"{figure.name}.jpg") as sheet:
            assert sheet.width > 128 * len(figure.columns)
            assert 2 * 128 < sheet.height < 3 * 128
    assert text.count("Should show: ") == text.count("**Does it? ") == 10


def test_every_number_has_a_threshold_and_every_threshold_a_number(figures: list[Figure]) -> None:
    for figure in figures[1:]:
        known = {key for key, value in figure.texts.items() if isinstance(value, dict)}
        assert set(figure.criteria) == known
        assert all(len(column) == QUICK.subjects for column in figure.columns.values())


def test_the_sheets_font_has_every_letter_of_the_titles(figures: list[Figure]) -> None:
    titles = [*(title for figure in figures for title in figure.columns), *(one.title for one in COLUMNS)]
    font: Any = ImageFont.load_default(15)
    missing = bytes(font.getmask("\uffff"))
    assert [letter for letter in set("".join(titles)) if bytes(font.getmask(letter)) == missing] == []


def test_a_part_that_is_missing_is_named(models: SuiteModels, tmp_path: Path) -> None:
    few = build_images(replace(models, fine_tuned=None), FigureSettings(subjects=1))
    with pytest.raises(UnknownModel, match="the figures need the embedded model's fine-tuned base"):
        draw_fine_tuned(few)
    with pytest.raises(UnknownModel, match="the embedded model's adapter is not in"):
        evaluate_figures(output=tmp_path, weights=tmp_path)


def save_models(models: SuiteModels, folder: Path) -> None:
    """The layout of the shipped weights; the style is a low-rank change that adds nothing yet."""
    pipe: Any = models.pipe
    for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        getattr(pipe, name).save_pretrained(folder / "base" / name)
    tiny.vision_model().save_pretrained(folder / "image_encoder")
    tiny.image_processor().save_pretrained(folder / "image_encoder")
    (folder / "adapter").mkdir()
    for adapter, name in ((models.adapter, "mini"), (models.plus, "mini-plus")):
        save_adapter(adapter, folder / "adapter" / EMBEDDED[name].file)  # type: ignore[arg-type]
    models.controlnet.save_pretrained(folder / "control")  # type: ignore[union-attr]
    models.judge.save(folder / "judge")
    tuned: Any = copy.deepcopy(pipe.unet)
    tuned.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))
    changes: Any = get_peft_model_state_dict(tuned)
    StableDiffusionPipeline.save_lora_weights(folder / "styles" / "lines", unet_lora_layers=changes)


@pytest.mark.slow
def test_all_parts_come_from_one_folder(
    models: SuiteModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_models(models, tmp_path / "weights")
    calls: list[Any] = []
    monkeypatch.setattr(
        "imprompt.lab.figures.make_figures", lambda *args, **options: calls.append(args) or []
    )
    evaluate_figures(output=tmp_path / "made", weights=tmp_path / "weights", small=True)
    loaded, settings = calls[0]
    assert (tmp_path / "made").is_dir()
    assert settings.subjects < FigureSettings().subjects
    assert (loaded.adapter.projection.tokens, loaded.plus.projection.tokens) == (2, 4)
    assert loaded.controlnet is not None
    assert loaded.fine_tuned is not None
    assert loaded.fine_tuned.unet is not loaded.pipe.unet


def test_a_row_has_the_same_noise_in_every_column_and_batch(
    images: FigureImages, models: SuiteModels
) -> None:
    whole = build_images(models, replace(QUICK, paint=ImageSettings(steps=2, batch_size=3)))
    for one, other in zip(images.alone, whole.alone, strict=True):
        assert np.abs(np.subtract(np.asarray(one, int), np.asarray(other, int))).max() <= 1
    assert images.seeds[0][0] != images.seeds[1][0]


def test_inpainting_keeps_what_is_not_masked(images: FigureImages) -> None:
    figure = draw_inpainting(images)
    picture, painted = (np.asarray(figure.columns[name][0], int) for name in ("picture", "painted"))
    fitted = images.models.pipe.vae.encode(to_tensor(picture)).latent_dist.mode()  # type: ignore[union-attr]
    expected = images.models.pipe.vae.decode(fitted).sample[0].permute(1, 2, 0)  # type: ignore[union-attr]
    kept = slice(5 * SIZE // 8 + 4, None)
    assert np.abs(((expected.detach().numpy() + 1) * 127.5).clip(0, 255) - painted)[kept].max() < 2


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_a_figure_is_the_same_twice(images: FigureImages, models: SuiteModels) -> None:
    one, again = draw_variations(images), draw_variations(build_images(models, QUICK))
    assert [x.value for x in one.criteria.values()] == [x.value for x in again.criteria.values()]
    assert all(list(one.columns[title]) == list(again.columns[title]) for title in one.columns)


def test_partners_are_unseen_and_unlike(images: FigureImages) -> None:
    for subject, partner in zip(images.subjects, images.partners, strict=True):
        assert partner.character.is_held_out
        assert partner.character.style == subject.character.style
        assert len(list_differences(subject.character, partner.character, ATTRIBUTES)) >= 4


def test_characters_for_texts_suit_every_text() -> None:
    changes = list(CHANGES.values())
    suited = sample_suitable(changes, 3)
    assert len(suited) == 3
    assert all(change.suits(subject.character) for change in changes for subject in suited)


# People in another style


def test_a_person_in_another_style_has_the_same_attributes() -> None:
    for person in sample_people(4):
        first, target = person.subject.character, person.target
        assert target.style != first.style
        assert target.is_held_out
        both = [name for name in IDENTITY if name in first.attributes and name in target.attributes]
        assert {name: target[name] for name in both} == {name: first[name] for name in both}
        assert person.free_attributes.items() <= target.attributes.items()
    assert [one.target for one in sample_people(2)] == [one.target for one in sample_people(4)[:2]]


def test_others_differ_from_a_person_in_what_makes_it_alone() -> None:
    person = sample_people(1)[0]
    free = find_free_attributes(person.subject.character, person.target.style)
    assert free == person.free_attributes
    assert len({one.tobytes() for one in draw_others(person, 4)}) == 4


def test_a_person_is_found_by_its_own_drawing(models: SuiteModels) -> None:
    people = sample_people(2)
    drawings = [draw(person.target) for person in people]
    galleries = PeopleGalleries(models.judge, people, 5)
    assert galleries.measure_found(drawings).tolist() == [1, 1]
    assert [draw_again(person).tobytes() for person in people] != [one.tobytes() for one in drawings]
    others = [draw_others(person, 1)[0] for person in people]
    assert galleries.measure_found(others).tolist() == [0, 0]


# Verdicts


def criterion_of(values: list[float], floors: list[float]) -> Any:
    return build_criterion("variations", "kept", np.array(values), np.array(floors))


@pytest.mark.parametrize(
    ("values", "floors", "verdict", "fault"),
    [
        ([0.9, 0.9, 1.0], [0.1, 0.2, 0.1], "yes", ""),
        ([0.7, 0.6, 0.8], [0.1, 0.2, 0.1], "partly", "below the threshold"),
        ([0.9, 0.9, 1.0], [0.9, 0.9, 1.0], "no", "not told from the floor"),
        ([0.9, 1.0, 0.9], [0.1, 1.0, 1.0], "no", "not told from the floor"),
        ([np.nan, 0.5], [0.1, np.nan], "partly", "not measured, for no character has it"),
    ],
)
def test_a_verdict_follows_from_value_floor_and_threshold(
    values: list[float], floors: list[float], verdict: str, fault: str
) -> None:
    criterion = criterion_of(values, floors)
    assert (criterion.verdict, criterion.fault) == (verdict, fault)


def test_a_figure_is_as_good_as_its_worst_number() -> None:
    good, poor, bad = np.ones(3), np.full(3, 0.5), np.zeros(3)
    pairs = {"yes": (good, bad), "partly": (poor, bad), "no": (bad, bad)}
    for verdict, pair in pairs.items():
        figure = build_figure("variations", {}, {"differ": (good, bad), "kept": pair})
        assert figure.verdict == verdict


def test_subjects_without_a_number_are_left_out_of_value_and_floor() -> None:
    criterion = criterion_of([1.0, np.nan, 1.0], [0.0, 0.0, 0.5])
    assert criterion.value == (1, 1, 1)
    assert criterion.floor.mean == 0.25


def test_the_page_states_verdict_reason_numbers_and_threshold() -> None:
    values, floors = np.full(4, 0.5), np.full(4, 0.25)
    text = write_section(
        Figure("control", {}, {"colors": build_criterion("control", "colors", values, floors)})
    )
    assert (
        "**Does it? Partly.** Below the threshold: colors of the image prompt, not of the edges’ picture."
        in text
    )
    assert "| 50 % [50, 50] | 60 % | 25 % [25, 25] | edges alone |" in text


# Measures


def drawings() -> list[Image.Image]:
    return [subject.picture for subject in sample_suitable([], 4)]


def test_a_share_is_of_the_named_attributes() -> None:
    subject = Subject(
        0, "combinations", Character("dylan", {"hair": "pink", "skin": "dark"}), Image.new("RGB", (8, 8))
    )
    readings = Readings({"hair": ["pink"] * 2, "skin": ["tan"] * 2}, torch.ones(2, 1))
    shares = read_shares(readings, [subject] * 2, [["hair", "skin"], []])
    assert shares[0] == 0.5
    assert np.isnan(shares[1])


def test_only_attributes_that_both_have_and_not_alike_tell_two_apart() -> None:
    one = Character("dylan", {"hair": "pink", "skin": "dark", "beard": "none"})
    other = Character("dylan", {"hair": "blue", "skin": "dark", "glasses": "none"})
    assert list_differences(one, other, ("hair", "skin", "beard", "glasses", "clothes")) == ["hair"]


def test_a_picture_correlates_with_itself_and_not_with_its_negative() -> None:
    pictures = drawings()
    assert measure_correlations(pictures, pictures) == pytest.approx(1)
    assert measure_correlations(
        pictures, [ImageOps.invert(picture) for picture in pictures]
    ) == pytest.approx(-1, abs=1e-3)
    assert measure_correlations([Image.new("RGB", (64, 64), "red")], pictures[:1]) == pytest.approx(0)


def test_edges_agree_with_their_own_picture_most() -> None:
    pictures = drawings()
    edges = find_edges(pictures)
    own = measure_edge_correlations(pictures, edges)
    assert own == pytest.approx(1)
    assert measure_edge_correlations(pictures, [*edges[1:], edges[0]]).max() < 0.8


def test_a_line_drawing_has_the_colors_of_ink_on_paper_and_a_colored_one_has_not() -> None:
    pictures = drawings()
    assert measure_line_shares(draw_line_pictures(pictures)) == pytest.approx(1)
    assert measure_line_shares(pictures).max() < 0.5
    assert measure_line_shares([Image.new("RGB", (8, 8), "white")]) == 0


def test_differences_are_shares_of_the_range() -> None:
    black, white = Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")
    half = Image.new("RGB", (8, 8), "black")
    half.paste("white", (0, 4, 8, 8))
    assert measure_closeness([half], [black], (0, 0, 8, 4)) == 1
    assert measure_closeness([half], [black], (0, 4, 8, 8)) == 0
    assert measure_seed_differences([[black], [black], [white]]) == pytest.approx(2 / 3)
