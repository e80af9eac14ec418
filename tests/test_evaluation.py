"""The evaluation: what ships, how references and galleries are chosen, what is measured and written."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import ConvNextConfig, ConvNextForImageClassification

import tiny
from imprompt import mini
from imprompt.checkpoint import save_adapter
from imprompt.encoder import ImageEncoder
from imprompt.errors import AdapterMismatch, OutputError, UnknownModel
from imprompt.evaluation import suites
from imprompt.evaluation.asking import THINGS, Asked, Asking
from imprompt.evaluation.console import print_summary
from imprompt.evaluation.copying import DATA, Seen, copied
from imprompt.evaluation.exhibits import FEATURED
from imprompt.evaluation.grounds import GROUNDS, border_colour, name_ground
from imprompt.evaluation.judge import EmbeddedJudge, load_judge
from imprompt.evaluation.mini_report import mini_report
from imprompt.evaluation.pictures import (
    HeldOut,
    light_copy,
    load_held_out,
    load_training,
    on_white,
    shuffled_place,
)
from imprompt.evaluation.report import Grid, make_folder
from imprompt.evaluation.sampling import (
    Condition,
    Models,
    Painter,
    Settings,
    count_pictures,
    make_pictures,
    seed_of,
    through_codec,
)
from imprompt.evaluation.scoring import Galleries, Score, over_concepts, score_pictures
from imprompt.evaluation.sheets import Row, titled_sheet
from imprompt.evaluation.suites import evaluate
from imprompt.training.captions import GROUNDS as CAPTIONED_GROUNDS
from imprompt.training.emoji import STYLES, is_held_out

QUICK = Settings(seeds=2, steps=2, batch_size=4)


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return load_held_out()


@pytest.fixture(scope="module")
def few(held_out: HeldOut) -> HeldOut:
    """Nine concepts, one of them in the figure."""
    concepts = {one.concept for one in held_out.references(8)} | {"popcorn"}
    return HeldOut([one for one in held_out.drawings if one.concept in concepts], held_out.pictures)


@pytest.fixture(scope="module")
def models() -> Models:
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    return Models(pipe, adapter, tiny_judge())


@tiny.seeded
def tiny_judge(*, seed: int = 0) -> EmbeddedJudge:
    config = ConvNextConfig(
        image_size=16,
        num_stages=2,
        hidden_sizes=[6, 8],
        depths=[1, 1],
        num_labels=5,  # pyright: ignore[reportCallIssue]
    )
    return EmbeddedJudge(ConvNextForImageClassification(config))


# What ships


def test_every_shipped_drawing_is_of_a_held_out_concept(held_out: HeldOut) -> None:
    assert len(held_out.drawings) == len(held_out.pictures) == 940
    assert len({drawing.concept for drawing in held_out.drawings}) == 207
    assert all(is_held_out(drawing.concept) for drawing in held_out.drawings)
    assert {drawing.style for drawing in held_out.drawings} == set(STYLES.values())


def test_every_shipped_drawing_shows_something(held_out: HeldOut) -> None:
    assert held_out.pictures.shape[1:] == (64, 64, 4)
    assert (held_out.pictures[..., 3].reshape(940, -1) > 0).mean(axis=1).min() > 0.01


def test_the_grounds_are_those_that_captions_name() -> None:
    assert GROUNDS == CAPTIONED_GROUNDS


def test_the_figure_shows_held_out_concepts(held_out: HeldOut) -> None:
    assert set(FEATURED) <= {drawing.concept for drawing in held_out.drawings}


# References and galleries


def test_each_concept_is_asked_for_once_and_styles_take_turns(held_out: HeldOut) -> None:
    references = held_out.references()
    assert len({reference.concept for reference in references}) == len(references) == 207
    counts = Counter(reference.style for reference in references)
    assert set(counts) == set(STYLES.values())
    assert max(counts.values()) < 207 / 2


def test_fewer_concepts_are_the_first_ones(held_out: HeldOut) -> None:
    assert held_out.references(5) == held_out.references()[:5]


def test_a_gallery_gives_no_style_away(held_out: HeldOut) -> None:
    for style in STYLES.values():
        gallery = held_out.gallery(style)
        assert {drawing.style for drawing in gallery} == {style}
        assert len({drawing.concept for drawing in gallery}) == len(gallery)


@pytest.mark.parametrize("count", [2, 3, 53, 106, 111, 206])
def test_a_shuffled_reference_is_never_the_true_one(count: int) -> None:
    places = torch.arange(count)
    shuffled = shuffled_place(places, count)
    assert (shuffled != places).all()
    assert sorted(shuffled.tolist()) == places.tolist()


def test_references_stand_on_white(held_out: HeldOut) -> None:
    pictures = [held_out.on_white(held_out.reference(name)) for name in FEATURED]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert {picture.getpixel((0, 0)) for picture in pictures} == {(255, 255, 255)}


def test_a_light_copy_is_another_picture_of_the_same_size(held_out: HeldOut) -> None:
    picture = held_out.on_white(held_out.reference("popcorn"))
    copy = light_copy(picture)
    difference = np.abs(np.subtract(np.asarray(picture), np.asarray(copy), dtype=float)).mean()
    assert copy.size == picture.size
    assert 1 < difference < 40


def test_concepts_share_no_seed() -> None:
    seeds = {seed_of(concept, k) for concept in "abc" for k in range(4)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


# Grounds


@pytest.mark.parametrize("name", GROUNDS)
def test_a_ground_is_known_by_its_border(name: str) -> None:
    picture = Image.new("RGB", (64, 64), GROUNDS[name])
    picture.paste((9, 200, 9), (6, 6, 58, 58))
    assert border_colour(picture) == GROUNDS[name]
    assert name_ground(border_colour(picture)) == name


def test_a_drawing_that_touches_the_border_does_not_hide_the_ground() -> None:
    picture = Image.new("RGB", (16, 16), GROUNDS["blue"])
    picture.paste((255, 255, 255), (0, 5, 16, 11))
    assert name_ground(border_colour(picture)) == "blue"


# Judge


def test_features_have_length_one_and_do_not_depend_on_company() -> None:
    pictures = [tiny.picture(seed=seed, width=16, height=16) for seed in range(3)]
    features = tiny_judge().features(pictures)
    alone = torch.cat([tiny_judge().features([picture]) for picture in pictures])
    assert torch.allclose(features.norm(dim=1), torch.ones(3))
    assert torch.allclose(features, alone, atol=1e-6)


def test_a_missing_judge_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="there is no judge in"):
        load_judge(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnknownModel, match="no judge"):
        load_judge(tmp_path)


# Making and scoring pictures


def test_each_picture_follows_its_own_reference_and_seed(models: Models, held_out: HeldOut) -> None:
    references = held_out.references(3)
    condition = Condition("image prompt", 1.0, seeds=2)
    together = make_pictures(models, held_out, references, condition, settings=QUICK)
    alone = [make_pictures(models, held_out, [one], condition, settings=QUICK)[0] for one in references]
    for several, expected in zip(together, alone, strict=True):
        for picture, other in zip(several, expected, strict=True):
            assert np.abs(np.subtract(np.asarray(picture), np.asarray(other), dtype=int)).max() <= 1
    assert len({picture.tobytes() for several in together for picture in several}) == 6


def test_without_scale_the_reference_says_nothing(models: Models, held_out: HeldOut) -> None:
    references = held_out.references(2)
    made = make_pictures(models, held_out, references, Condition("none", 0.0), settings=QUICK)
    generator = [torch.Generator().manual_seed(seed_of(one.concept, 0)) for one in references]
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": QUICK.guidance_scale}
    base = models.pipe(["", ""], generator=generator, **settings).images  # pyright: ignore[reportAttributeAccessIssue]
    assert [one[0].tobytes() for one in made] == [picture.tobytes() for picture in base]


def test_pictures_come_back_from_the_codec_at_the_base_s_size(models: Models, held_out: HeldOut) -> None:
    pictures = [held_out.on_white(one) for one in held_out.references(2)]
    assert [picture.size for picture in through_codec(models, pictures)] == [(16, 16)] * 2


def test_the_reference_itself_scores_best(models: Models, few: HeldOut) -> None:
    references = few.references()
    pictures = [[few.on_white(one)] for one in references]
    asked = Asked(models.judge, {"face": pictures[0], "clock": pictures[1]})
    scores = score_pictures(
        Galleries(few, models.judge, Asking(("face", "clock")), asked), references, "itself", pictures
    )
    assert all(score.similarity == pytest.approx(1, abs=1e-6) for score in scores)
    assert all(score.gap >= -1e-6 for score in scores)
    assert all(score.rank == 0 for score in scores)


def test_a_concept_counts_once_however_many_pictures_it_has() -> None:
    def score(concept: str, seed: int, similarity: float) -> Score:
        return Score("image prompt", concept, "noto", False, seed, similarity, 0.1, 0, 9, "white", 0.0)

    scores = [score("cat", 0, 1.0), score("cat", 1, 0.0), score("dog", 0, 0.0)]
    assert over_concepts(scores, lambda one: one.similarity).mean == 0.25


def test_an_adapter_without_encoder_is_refused(models: Models, held_out: HeldOut) -> None:
    bare = Models(models.pipe, tiny.adapter(models.pipe.unet), models.judge)
    with pytest.raises(AdapterMismatch, match="no image encoder"):
        make_pictures(bare, held_out, held_out.references(1), Condition("image prompt", 1.0), settings=QUICK)


class ReadingJudge(EmbeddedJudge):
    """A judge with made-up features of captions."""

    @property
    def reads_text(self) -> bool:
        return True

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        rows = [torch.randn(5, generator=torch.Generator().manual_seed(len(text))) for text in captions]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def write_seen(folder: Path, count: int = 8) -> None:
    """Training drawings of two icon sets, and one that is held out and must not count."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    np.save(folder / "pictures.npy", chance.integers(0, 256, (2 * count + 1, 16, 16, 4), dtype=np.uint8))
    rows = [
        {"concept": str(k), "icon_set": "ab"[k % 2], "held_out": k == 2 * count} for k in range(2 * count + 1)
    ]
    (folder / "drawings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Measured(NamedTuple):
    """A finished evaluation: its folder, its summary, its lines of scores."""

    folder: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]


@pytest.fixture(scope="module")
def measured(models: Models, few: HeldOut, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("report")
    write_seen(folder.parent / "cache" / DATA)
    settings = Settings(seeds=2, steps=1, batch_size=12, asking=Asking(("face", "clock"), "blue"), curve=2)
    reading = replace(models, judge=ReadingJudge(tiny_judge().network))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPROMPT_CACHE", str(folder.parent / "cache"))
        summary = evaluate(reading, few, settings, output=folder, concepts=3)
    text = (folder / "scores.csv").read_text(encoding="utf-8")
    return Measured(folder, summary, list(csv.DictReader(io.StringIO(text))))


def test_an_evaluation_writes_pages_scores_summary_and_sheets(measured: Measured, models: Models) -> None:
    pages = ["index-small.html", "index.html", "scores.csv", "scores.parquet", "summary.json"]
    assert sorted(path.name for path in measured.folder.iterdir()) == [
        *["contact-sheet.png", "every-concept.png", "figure.png"],
        *pages,
    ]
    assert Counter(row["condition"] for row in measured.rows) == {
        "image prompt": 6,
        "scale 0": 3,
        "with text": 3,
        "light copy": 3,
        "autoencoder": 3,
        **{f"with text, scale {scale}": 2 for scale in ("0", "0.25", "0.5", "0.75")},
    }
    stored = json.loads((measured.folder / "summary.json").read_text(encoding="utf-8"))
    gap = stored["all"]["conditions"]["image prompt"]["gap"]
    assert gap["low"] <= gap["mean"] <= gap["high"]
    assert gap["mean"] == pytest.approx(np.mean([float(r["gap"]) for r in measured.rows[:6]]), abs=1e-5)
    assert 0 < stored["all"]["chance@1"] < stored["all"]["chance@5"] <= 1
    assert stored["settings"]["steps"] == 1
    assert {"imprompt", "torch", "diffusers"} <= set(stored["versions"])
    assert not models.adapter.is_attached


def test_the_terminal_says_what_the_page_says(measured: Measured) -> None:
    console = Console(file=io.StringIO(), width=160)
    print_summary(measured.summary, console)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for word in ("chance", "light copy", "ground", "λ", "KID", "copies"):
        assert word in said


def test_the_page_shows_curve_distribution_copies_and_cases(measured: Measured) -> None:
    page = (measured.folder / "index.html").read_text(encoding="utf-8")
    for said in ("CLIP-T", "the area under the", "KID × 1000", "Of 16 training drawings", "Contact sheet"):
        assert said in page
    assert "self" not in page.partition("<h1>")[0].partition("<body>")[2]


def test_text_and_image_are_followed_over_the_same_concepts_at_every_scale(measured: Measured) -> None:
    curve = measured.summary["curve"]
    assert curve["concepts"] == 2
    assert (
        len(curve["image"]) == len(curve["text"]) == len(curve["similarity to text"]) == len(curve["scales"])
    )
    first = {row["concept"] for row in measured.rows if row["condition"] == "with text, scale 0"}
    copies = [r for r in measured.rows if r["condition"] == "light copy" and r["concept"] in first]
    ceiling = np.mean([float(row["gap"]) for row in copies])
    last = [r for r in measured.rows if r["condition"] == "with text" and r["concept"] in first]
    expected = np.mean([float(row["gap"]) for row in last]) / ceiling
    assert curve["image"][-1].mean == pytest.approx(expected, rel=1e-4)
    assert curve["text"][0].mean == pytest.approx(1.0)


def test_a_page_of_the_conditioning_encoder_s_own_judgement_says_self(measured: Measured) -> None:
    told = {**measured.summary, "judge": {**measured.summary["judge"], "self": True}, "copies": None}
    report = mini_report(told, scores_of(measured.rows), [], Grid([], []))
    assert "self" in report.over
    assert "conditioning encoder" in report.lead
    assert any("imprompt mini build-data" in section.text for section in report.sections)


def scores_of(rows: Sequence[Mapping[str, str]]) -> list[Score]:
    """Scores as they were before they were written, as far as a report reads them."""
    names = ("condition", "concept", "style", "ground")
    return [
        Score(
            **{name: row[name] for name in names},  # pyright: ignore[reportArgumentType]
            is_twin=row["is_twin"] == "True",
            seed=int(row["seed"]),
            similarity=float(row["similarity"]),
            gap=float(row["gap"]),
            asked_gap=float(row["asked_gap"]),
            rank=int(row["rank"]),
            gallery=int(row["gallery"]),
        )
        for row in rows
    ]


def test_copies_of_training_drawings_are_told_from_others(tmp_path: Path) -> None:
    write_seen(tmp_path / DATA)
    sets = load_training(tmp_path / DATA)
    assert sets is not None
    assert {name: len(several) for name, several in sets.items()} == {"a": 8, "b": 8}
    judge = tiny_judge()
    seen = Seen(judge, sets)
    ratios = copied(judge.features([on_white(sets["b"][3])]), seen.features)
    assert ratios == pytest.approx([0], abs=1e-5)
    assert copied(judge.features([on_white(sets["b"][3])]), None) == [None]
    assert load_training(tmp_path / "elsewhere") is None


def test_a_painter_makes_no_picture_twice(models: Models, held_out: HeldOut) -> None:
    references = held_out.references(2)
    asked = [
        (references, Condition("image prompt", 1.0, seeds=2)),
        (references[:1], Condition("scale 1", 1.0)),
        (references, Condition("scale 0", 0.0)),
    ]
    painter, made = Painter(models, held_out, QUICK), []
    several = [painter.paint(some, condition, made.append) for some, condition in asked]
    assert sum(made) == count_pictures(asked) == 6
    assert several[1][0][0] is several[0][0][0]


def test_another_adapter_is_measured_in_the_place_of_the_models_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = mini.adapter()
    with torch.no_grad():
        other.projection.get_parameter("proj.bias").add_(1)
    save_adapter(other, tmp_path / "other.safetensors", {"image_encoder": "mini"})
    measured: list[Models] = []
    monkeypatch.setattr(suites, "evaluate", lambda models, *_, **__: measured.append(models) or {})
    for name in ("mini", str(tmp_path / "other.safetensors")):
        suites.evaluate_mini(output=tmp_path / "report", adapter=name)
    own, theirs = (models.adapter.state_dict() for models in measured)
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == ["projection.proj.bias"]
    assert measured[1].adapter.image_encoder is not None


def test_pictures_are_the_same_twice(models: Models, held_out: HeldOut) -> None:
    condition = Condition("image prompt", 0.7, Asking(("cat",)), seeds=2)
    one, two = (
        make_pictures(models, held_out, held_out.references(2), condition, settings=QUICK) for _ in "ab"
    )
    assert one == two


def test_a_report_s_folder_is_made_or_refused_first(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        make_folder(tmp_path / "file" / "b")


# What a text asks for


def test_a_concept_is_always_asked_for_with_the_same_text_and_all_texts_are_asked() -> None:
    asking, concepts = Asking(), [f"concept {number}" for number in range(400)]
    assert {asking.beside(concept) for concept in concepts} == {asking.text(thing) for thing in THINGS}
    assert asking.beside("crown") == Asking().beside("crown")
    assert str(Asking(("face",), "blue")) == "face, on a blue background"
    assert str(Asking(("face", "fish"))) == "[face | fish], on a red background"


def test_what_shows_the_asked_thing_has_a_gap_and_what_shows_another_a_negative_one() -> None:
    judge, noise = tiny_judge(), np.random.default_rng(0)
    faces, fish = (
        [Image.fromarray(noise.integers(0, high, (64, 64, 3), np.uint8)) for _ in range(2)]
        for high in (256, 40)
    )
    asked = Asked(judge, {"face": faces, "fish": fish})
    mine, theirs = asked.gaps(judge.features([faces[0], fish[0]]), "face")
    assert mine > 0 > theirs
    assert asked.gaps(judge.features(faces), "fish")[0] == pytest.approx(-mine)
    with pytest.raises(ValueError, match="told from other texts"):
        Asked(judge, {"face": faces})


# Sheets


def test_a_sheet_has_room_for_every_picture_and_title() -> None:
    picture = Image.new("RGB", (8, 8), "navy")
    rows = [Row([picture] * 3, f"a rather long name, number {i}") for i in range(5)]
    titles = ["image prompt", "scale 1", "scale 1, “on a blue background, at night”"]
    sheet = titled_sheet(titles, rows, blocks=2, cell=32)
    pixels = np.asarray(sheet)
    assert sheet.width == 2 * (3 * 36 - 4) + 24
    assert (pixels == (0, 0, 128)).all(axis=-1).sum() == 15 * 32 * 32
