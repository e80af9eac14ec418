"""coco and dreambench: the protocols end to end on toy data, killed and resumed, by one process or more."""

import csv
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ToyModel
from imprompt import cli
from imprompt.errors import ConfigError, DataError
from imprompt.evaluation import methods
from imprompt.evaluation.methods.adapters import AdapterMethod
from imprompt.evaluation.methods.shuffle import shuffle_content, smooth_field
from imprompt.evaluation.settings import DrawingSettings, MethodSettings
from imprompt.evaluation.suites.coco import evaluate_coco
from imprompt.evaluation.suites.coco_report import CocoResult
from imprompt.evaluation.suites.data import parse_prompts, read_coco
from imprompt.evaluation.suites.drawing import draw_all, draw_groups
from imprompt.evaluation.suites.dreambench import evaluate_dreambench
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.scoring import JudgeFeatures, score_bounds, score_images
from imprompt.evaluation.suites.tasks import Task, derive_seed, group_tasks
from imprompt.generation.job import read_settings
from stand_in import (
    IDS,
    IMAGES,
    PROMPTS,
    SAMPLES,
    StandIn,
    coco_settings,
    job_of,
    make_stand_in,
    read_drawings,
    write_coco,
)
from training_processes import start_process


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory, toy: ToyModel) -> StandIn:
    return make_stand_in(tmp_path_factory.mktemp("stand-in"), toy)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "empty.toml"
    path.write_text("")
    return path


class Whole:
    """A run that nothing disturbed."""

    def __init__(self, output: Path, summary: CocoResult) -> None:
        self.output, self.summary = output, summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn, config: Path) -> Whole:
    output = tmp_path_factory.mktemp("whole") / "coco"
    return Whole(output, evaluate_coco(output=output, config=config, settings=coco_settings(stand_in)))


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open() as file:
        return list(csv.DictReader(file))


# Laws


def test_seeds_follow_from_names_alone_and_fit_a_generator() -> None:
    seeds = {derive_seed("coco", image, k) for image in range(50) for k in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("coco", 139, 0) == derive_seed("coco", 139, 0) != derive_seed("coco", 13, 90)


def test_groups_keep_the_order_and_hold_only_what_one_call_can_draw() -> None:
    tasks = [Task(f"{r}-{s}-{k}", r, "", s, k) for r in "ab" for s in (0.5, 1.0) for k in range(3)]
    groups = group_tasks(tasks, 2)
    assert [task for group in groups for task in group] == tasks
    assert [len(group) for group in groups] == [2, 1] * 4
    assert all(len({(t.reference, t.scale) for t in group}) == 1 for group in groups)


def test_a_reference_scores_the_ceiling_and_another_one_the_floor() -> None:
    torch.manual_seed(0)
    references = torch.nn.functional.normalize(torch.randn(9, 6), dim=-1)
    captions = list(references[:, None].repeat(1, 2, 1))
    places = torch.arange(9)
    seen = JudgeFeatures(references, places, references, references, references, captions)
    perfect, found = score_images(seen, references, places), score_bounds(seen)
    assert torch.allclose(perfect.square, torch.ones(9, dtype=torch.float64))
    assert perfect.rank.tolist() == [0] * 9
    assert perfect.first_caption is not None
    assert perfect.all_captions is not None
    assert torch.allclose(perfect.all_captions, perfect.first_caption)
    assert torch.allclose(perfect.gap, 1 - found["another reference"].square)
    assert (found["another reference"].square < 0.999).all()
    assert (found["another reference"].rank > 0).all()


def test_shuffle_content_is_the_pictures_own_and_another_for_each_seed() -> None:
    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    first, second = (np.asarray(shuffle_content(picture, 48, seed)) for seed in (1, 2))
    assert first.shape == (48, 48, 3)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, np.asarray(shuffle_content(picture, 48, 1)))
    assert np.asarray(picture).min() <= first.min() < first.max() <= np.asarray(picture).max()
    field = smooth_field(512, torch.Generator().manual_seed(0))
    assert (field.min(), field.max()) == (0, 1)
    assert field.diff(dim=0).abs().max() < 0.05


# coco


def test_coco_scores_every_picture_by_every_judge(whole: Whole, stand_in: StandIn) -> None:
    scores, summary = rows(whole.output), whole.summary
    assert len(scores) == 2 * IMAGES * SAMPLES
    assert summary.pictures == IMAGES * SAMPLES
    clip, other = summary.judges["clip"], summary.judges["self"]
    assert not clip.is_self
    assert other.is_self
    names = list(clip.conditions)
    assert names[1:] == ["another reference", "light copy", "the reference"]
    assert clip.conditions["the reference"].similarity.mean == pytest.approx(1)
    assert clip.conditions["the reference"].retrieval_1.mean == 1
    mine = [row for row in scores if row["judge"] == "clip"]
    first = np.mean([float(row["similarity"]) for row in mine])
    assert clip.conditions[names[0]].similarity.mean == pytest.approx(first)
    assert float(mine[0]["clip_score"]) == 2.5 * max(float(mine[0]["text"]), 0)
    assert {row["text"] for row in scores if row["judge"] == "self"} == {""}


def test_coco_writes_a_page_that_says_self_and_pictures_that_say_how(whole: Whole) -> None:
    page = (whole.output / "index.html").read_text()
    assert "(self)" in page
    assert "another reference" in page
    assert json.loads((whole.output / "summary.json").read_text())["method"] == whole.summary.method
    said = read_settings(whole.output / "pictures" / f"{IDS[0]:012d}-1.png")
    assert (said["seed"], said["scale"], said["prompt"]) == (derive_seed("coco", IDS[0], 1), 1.0, "")


def test_the_first_caption_is_the_first_by_id(stand_in: StandIn) -> None:
    images = read_coco(stand_in.coco, 3)
    assert [image.id for image in images] == IDS[:3]
    assert images[0].captions == ("picture 139", "a toy, no. 139")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_scores(
    whole: Whole, stand_in: StandIn, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    command = ["evaluate", "coco", str(config), "--output", str(output)]
    command += [word for setting in coco_settings(stand_in) for word in ("--set", setting)]
    process = start_process(cli.main, command)
    pictures = output / "pictures"
    while process.is_alive() and len(list(pictures.glob("*.png"))) < 3:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < len(list(pictures.glob("0*.png"))) < IMAGES * SAMPLES
    evaluate_coco(output=output, config=config, settings=coco_settings(stand_in))
    assert read_drawings(output) == read_drawings(whole.output)
    assert (output / "scores.csv").read_bytes() == (whole.output / "scores.csv").read_bytes()


def test_what_is_done_is_not_done_again(
    whole: Whole, stand_in: StandIn, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdapterMethod, "draw", None)
    monkeypatch.setattr("imprompt.evaluation.judges.Judge.features", None)
    before = (whole.output / "scores.csv").read_bytes()
    evaluate_coco(output=whole.output, config=config, settings=coco_settings(stand_in))
    assert (whole.output / "scores.csv").read_bytes() == before


@pytest.mark.slow
def test_two_processes_draw_what_one_does_though_one_of_them_is_killed(
    whole: Whole, stand_in: StandIn, config: Path, tmp_path: Path
) -> None:
    tasks, job = job_of(stand_in, config, tmp_path / "two", "drawing.workers=2")
    outcomes = draw_groups(group_tasks(tasks, 2), job)
    done = [next(outcomes)]
    victim = next(child for child in multiprocessing.active_children() if child.name.startswith("ForkServer"))
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    done += outcomes
    assert sorted(outcome.group for outcome in done) == list(range(IMAGES))
    assert {outcome.fault for outcome in done} == {""}
    assert read_drawings(tmp_path / "two") == read_drawings(whole.output)


# What goes wrong


def test_one_bad_task_is_named_and_the_run_goes_on(
    whole: Whole, stand_in: StandIn, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, job = job_of(stand_in, config, tmp_path / "bad")
    bad = tasks[4].seed
    draw = AdapterMethod.draw

    def failing(self: Any, reference: Any, text: str, scale: float, seeds: list[int]) -> Any:
        if bad in seeds:
            raise RuntimeError("no memory left")
        return draw(self, reference, text, scale, seeds)

    monkeypatch.setattr(AdapterMethod, "draw", failing)
    failed = draw_all(tasks, job, lambda pictures: None)
    assert failed == {
        tasks[4].key: "RuntimeError: no memory left",
        tasks[5].key: "RuntimeError: no memory left",
    }
    assert len(read_drawings(tmp_path / "bad")) == IMAGES * SAMPLES - 2
    assert (tmp_path / "bad" / "failed.jsonl").read_text().count("no memory left") == 2
    monkeypatch.undo()
    assert draw_all(tasks, job, lambda pictures: None) == {}
    assert read_drawings(tmp_path / "bad") == read_drawings(whole.output)
    assert not (tmp_path / "bad" / "failed.jsonl").exists()


def test_a_fault_of_many_tasks_ends_the_run(
    stand_in: StandIn, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, job = job_of(stand_in, config, tmp_path / "all")
    monkeypatch.setattr(AdapterMethod, "draw", lambda *_: 1 / 0)
    with pytest.raises(DataError, match=r"4 of 16 pictures cannot be drawn.*139-0: ZeroDivisionError"):
        draw_all(tasks, job, lambda pictures: None)


def test_an_unreadable_picture_is_named_and_left_out(stand_in: StandIn, config: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", IDS[:4])
    (tmp_path / "coco" / "val2017" / f"{IDS[1]:012d}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    settings = stand_in.settings(tmp_path / "coco", images=4, samples=1)
    summary = evaluate_coco(output=tmp_path / "out", config=config, settings=settings)
    assert (summary.references, summary.unreadable, summary.pictures) == (3, 1, 3)
    assert f"{IDS[1]:012d}.jpg" in (tmp_path / "out" / "unreadable.jsonl").read_text()
    (tmp_path / "coco" / "val2017" / f"{IDS[2]:012d}.jpg").unlink()
    with pytest.raises(DataError, match="2 of 4 pictures cannot be read, more than 1 %"):
        evaluate_coco(output=tmp_path / "out", config=config, settings=settings)


def test_a_folder_of_other_settings_or_weights_is_refused(
    whole: Whole, stand_in: StandIn, config: Path
) -> None:
    more = coco_settings(stand_in, "drawing.steps=3")
    with pytest.raises(ConfigError, match=r"drawn with drawing.steps 2, not 3; give another --output"):
        evaluate_coco(output=whole.output, config=config, settings=more)
    with pytest.raises(ConfigError, match="other weights drew"):
        BenchmarkFolder(whole.output).check_models("others")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.folder=none", r"there is no none/val2017: unpack COCO's val2017.zip into none"),
        ("data.images=9", r"has 8 pictures with captions; set data.images, which is 9, lower"),
        ("data.sampels=9", r"unknown key 'sampels'; did you mean 'data.samples'"),
        (
            "method.name=t2i-adapter-style",
            "diffusers 0.42 cannot run it: diffusers has the T2I-Adapters that",
        ),
        ("method.name=uni-controlnet", "diffusers 0.42 cannot run it: diffusers has no Uni-ControlNet"),
        ("method.name=unclp", "there is no method 'unclp'; did you mean 'unclip'"),
        ("method.name=unclip", "method unclip: method.adapter has no effect"),
        ("method.adapter=", "method ip-adapter: method.adapter is missing"),
        ("method.second=x", "method ip-adapter: method.second has no effect"),
        ("judging.clip=none/at-all", "none/at-all"),
    ],
)
def test_wrong_settings_are_found_before_anything_is_drawn(
    setting: str, message: str, stand_in: StandIn, config: Path, tmp_path: Path
) -> None:
    from imprompt.errors import ImpromptError

    with pytest.raises(ImpromptError, match=message):
        evaluate_coco(output=tmp_path / "x", config=config, settings=coco_settings(stand_in, setting))
    assert not (tmp_path / "x" / "pictures").exists()


def test_baselines_refuse_what_they_cannot_honour() -> None:
    check = methods.check_method
    settings, drawing = MethodSettings, DrawingSettings
    for name, more, message in (
        ("unclip", {"drawing": drawing(size=512)}, "drawing.size has no effect"),
        ("sd-image-variations", {"text": True}, "it takes no text"),
        ("kandinsky", {"scales": True}, "it has no λ"),
        ("unclip", {"drawing": drawing(negative_prompt="blur")}, "negative_prompt has no effect"),
    ):
        asked: dict[str, Any] = {"drawing": drawing(), "scales": False, "text": False, **more}
        with pytest.raises(ConfigError, match=message):
            check(settings(name=name), **asked)


# dreambench


def test_prompts_are_read_without_the_unique_token() -> None:
    classes, things, living = parse_prompts(PROMPTS)
    assert classes == {"clock": "clock", "dog": "dog", "teapot": "teapot"}
    assert things == ["a {1} in the snow", "a red {1}"]
    assert living == ["a {1} wearing a red hat", "a wet {1}"]


def test_dreambench_scores_fidelity_and_prompts_at_every_scale(
    stand_in: StandIn, config: Path, tmp_path: Path
) -> None:
    settings = stand_in.settings(stand_in.dreambench, subjects=3, samples=1, scales=[0, 1])
    settings = [s for s in settings if not s.startswith("data.scales")] + ["data.scales=[0.0, 1.0]"]
    summary = evaluate_dreambench(output=tmp_path / "db", config=config, settings=settings)
    scores = rows(tmp_path / "db")
    assert summary.pictures == 3 * 2 * 2
    assert {row["prompt"] for row in scores if row["subject"] == "dog"} == {
        "a dog wearing a red hat",
        "a wet dog",
    }
    assert len({row["seed"] for row in scores}) == 6  # the same noise at every λ
    assert set(summary.judges["clip"].to_json()) == {"λ 0", "λ 1", "real pictures", "is self"}
    assert summary.curve is not None
    assert summary.curve.scales == [0.0, 1.0]
    assert 0 < summary.judges["clip"].real.mean <= 1
    assert "CP · PF" in (tmp_path / "db" / "index.html").read_text()


def test_dreambench_says_what_is_missing(stand_in: StandIn, config: Path, tmp_path: Path) -> None:
    settings = stand_in.settings(tmp_path, subjects=3)
    with pytest.raises(DataError, match="clone of github"):
        evaluate_dreambench(output=tmp_path / "x", config=config, settings=settings)
    settings = stand_in.settings(stand_in.dreambench, subjects=4)
    with pytest.raises(DataError, match=r"has 3 subjects; data.subjects asks for 4"):
        evaluate_dreambench(output=tmp_path / "x", config=config, settings=settings)


# The command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("coco", "the suite 'coco' needs CONFIG, a TOML file; recipes/coco.toml is one"),
        ("study", "the suite 'study' needs --runs, a folder made by scripts/study"),
        ("mini x.toml", "CONFIG has no effect on the suite 'mini'; it goes with coco and dreambench"),
        (
            "coco x.toml --small",
            "--small has no effect on the suite 'coco'; it goes with mini, figures and study",
        ),
        ("figures --set a=1", "--set has no effect on the suite 'figures'; it goes with coco and dreambench"),
        ("dreambench x.toml", "x.toml: no such file"),
    ],
)
def test_an_option_without_effect_is_one_line(words: str, message: str, imprompt: Any) -> None:
    code, _, error = imprompt("evaluate", *words.split())
    assert (code, error) == (1, f"imprompt: {message}\n")
