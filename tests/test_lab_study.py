"""The study of mechanisms: runs are found, measured once and compared fairly; what cannot be told is not."""

import itertools
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import ConfigError
from imprompt.evaluation.metrics import area_difference, bootstrap_interval
from imprompt.lab import study as study_module
from imprompt.lab.making import dataset
from imprompt.lab.making.characters import Character
from imprompt.lab.making.objectives.base import build_unet
from imprompt.lab.making.objectives.decoder import fit_codec
from imprompt.lab.making.recipe import BaseRecipe, CodecRecipe, EncoderRecipe, parse_recipe
from imprompt.lab.making.stages import build_objective
from imprompt.lab.study import BASE_ALONE, StudyFindings, StudySettings, evaluate_study
from imprompt.lab.study.comparing import (
    DECOUPLED,
    DIVERSITY,
    EDGES,
    FOUND,
    KEPT,
    LINES,
    TEXT_FOLLOWED,
    Difference,
    StudyScores,
    bootstrap_both,
    describe_verdicts,
)
from imprompt.lab.study.measuring import find_edge_giver, load_study_pipeline
from imprompt.lab.study.page import write_verdict
from imprompt.lab.study.runs import (
    RunResult,
    StudyRun,
    StudyScore,
    build_result_key,
    find_runs,
    list_differences,
    load_result,
    save_result,
)
from imprompt.lab.study.settings import ALONE, CONTROL, STYLE, TEXT
from imprompt.lab.study.tradeoff import AREA, follow_both, measure_tradeoff
from imprompt.lab.suite.images import ImageSettings
from imprompt.lab.suite.scoring import DRAWING
from imprompt.lab.suite.structure import draw_line_pictures, measure_edge_gaps, measure_line_shares
from imprompt.lab.suite.subjects import CHANGES, Subject, sample_subjects, select_suitable
from imprompt.projection import HiddenProjection, LinearProjection
from imprompt.report import Interval
from imprompt.training.mechanisms import (
    ConcatenatedMechanism,
    DecoupledMechanism,
    ReplacedMechanism,
    TimeProjection,
    UnclipMechanism,
    time_embedding_width,
)
from test_making import ORDER, SIZE, SMALL

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # DPM++, NumPy 2

QUICK = StudySettings(
    subjects=6,
    gallery=4,
    seeds=2,
    diverse=2,
    text_subjects=2,
    scales=(0.5,),
    others=3,
    paint=ImageSettings(steps=1, batch_size=4),
)


def config(seed: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "base": {"model": "mini", "image_encoder": "known"},
        "adapter": {"variant": "base", "hidden": 0},
        "data": {"source": "samples"},
        "loss": {"image_drop": 0.05},
        "training": {
            "seed": seed,
            "steps": 500,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "base_learning_rate": 2e-4,
        },
    } | changes


def write_run(folder: Path, mechanism: Any, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    mechanism.save(folder / "adapter.safetensors", {"seed": str(settings["training"]["seed"])})
    mechanism.detach()
    (folder / "config.json").write_text(json.dumps(settings))
    checks = [
        {"step": step, "held-out loss": 0.05 - step / 1e5, "gap to shuffled": 0.01} for step in (0, 250, 500)
    ]
    paces = [{"step": step, "samples/s": pace} for step, pace in ((100, 40), (200, 41), (300, 1))]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*checks, *paces]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of the embedded model, untrained; the fine-tuned base is changed at random."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:  # noise in place of drawings, and no processes
        patch.setattr(dataset, "ProcessPoolExecutor", ThreadPoolExecutor)
        patch.setattr(dataset, "draw_many", draw_noise)
        counts = {"training": 24, "combinations": 6, "parts": 6, "styles": 6}
        dataset.build_data(folder / "data", counts, size=SIZE)  # pyright: ignore[reportArgumentType]
    common = {"data": str(folder / "data"), "output": str(folder), "steps": 1, "batch_size": 8}
    for stage in (one for one in ORDER if one != "recognizer"):
        recipe = parse_recipe({**common, "stage": stage, **SMALL[stage]}, "test")
        if isinstance(recipe, CodecRecipe):
            fit_codec(recipe, folder)
            continue
        objective = build_objective(recipe, folder)
        if stage == "style":
            for name, value in objective.unet.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(value, std=0.02)
        objective.export(folder)
    return folder


def draw_noise(characters: list[Character], size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(characters), size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoupled, a concatenated, a replaced and an unCLIP run, and one that has not finished."""
    folder, pipe = tmp_path_factory.mktemp("runs"), mini.pipeline(weights=model)
    linear = LinearProjection(32, 64, 2, generator=torch.Generator().manual_seed(0))
    adapter = ImagePromptAdapter.for_unet(pipe.unet, linear)
    write_run(folder / "decoupled-1", DecoupledMechanism(adapter, pipe), config())
    write_run(folder / "concatenated-1", ConcatenatedMechanism(linear, pipe), config())
    write_run(folder / "replaced-1", ReplacedMechanism(linear, pipe), config())
    time_projection = TimeProjection(32, time_embedding_width(pipe.unet))
    write_run(folder / "unclip-1", UnclipMechanism(time_projection, pipe), config())
    (folder / "unclip-2").mkdir()
    (folder / "unclip-2" / "config.json").write_text(json.dumps(config(2)))
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report")
    evaluate_study(runs=runs, output=output, weights=model, settings=QUICK)
    return output


@pytest.fixture(scope="module")
def findings(
    report: Path, runs: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> StudyFindings:
    """Of a second call, which must not measure anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "measure_run", lambda *_: pytest.fail("measured again"))
        output = tmp_path_factory.mktemp("again")
        return evaluate_study(runs=runs, output=output, weights=model, settings=QUICK)


def test_every_finished_run_is_measured_and_reported(report: Path, runs: Path) -> None:
    summary = json.loads((report / "summary.json").read_text())
    assert {name: one["mechanism"] for name, one in summary["runs"].items()} == {
        f"{name}-1": name for name in ("decoupled", "concatenated", "replaced", "unclip")
    }
    assert {one["other"] for one in summary["differences"]} == {"concatenated", "replaced", "unclip"}
    assert all((runs / name / "study.json.gz").is_file() for name in (*summary["runs"], ".base"))
    assert re.match(r"With [\d,]+ parameters against [\d,]+, ", summary["verdict"])
    page = (report / "index.html").read_text()
    assert all(f"Figure {number}: " in page for number in (3, 4, 6, 9, 10))
    assert "unclip-2" in page
    trainings = re.sub(r"<[^>]+>", " ", page[page.index("Trainings") :])
    assert re.search(r"decoupled\s+0\.0010\s+0\.0450\s+0\.0100\s+40\s", trainings)
    assert re.search(r"unclip\s+0\.0002\s", trainings), "the rate of the U-Net, which it trains"
    assert (report / "figure-3-image-prompt-alone.png").is_file()


@pytest.mark.slow
def test_a_second_call_measures_nothing_and_says_the_same(report: Path, findings: StudyFindings) -> None:
    summary = json.loads((report / "summary.json").read_text())
    assert summary["verdict"] == findings.verdict
    lines = (report / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + len(findings.scores.scores)


def test_every_condition_is_scored_in_its_own_way(findings: StudyFindings) -> None:
    scores = findings.scores
    assert scores.mechanisms == [BASE_ALONE, DECOUPLED, "concatenated", "unclip", "replaced", DRAWING]
    subjects = sample_subjects("combinations", QUICK.subjects)
    texts = sum(len(select_suitable(subjects, change)[: QUICK.text_subjects]) for change in CHANGES.values())
    for name in scores.mechanisms:
        mine = [score for score in scores.scores if score.mechanism == name]
        counts = {one: sum(score.condition == one for score in mine) for one in (ALONE, TEXT, CONTROL, STYLE)}
        several = 2 if name in (DECOUPLED, "concatenated", "unclip") else 1
        assert counts == {
            ALONE: QUICK.subjects,
            TEXT: several * texts,
            CONTROL: 0 if name == DRAWING else QUICK.others,
            STYLE: QUICK.others,
        }
        assert all((score.edges is None) == (score.condition != CONTROL) for score in mine)
        assert all((score.lines is None) == (score.condition != STYLE) for score in mine)
        assert all((score.rank is None) == (score.condition != ALONE) for score in mine)
        assert sum(score.diversity is not None for score in mine) == (name != DRAWING) * QUICK.diverse
    assert scores.measure_interval(DRAWING, FOUND) == (1, 1, 1)
    assert scores.measure_interval(DRAWING, DIVERSITY) is None
    assert scores.measure_interval(DRAWING, EDGES) is None
    assert (found := scores.measure_interval(DRAWING, LINES)) is not None
    assert found.mean > 0.9


def test_a_fine_tuned_base_keeps_what_a_mechanism_has_learned(runs: Path, model: Path) -> None:
    """The style's change of weights is added to the run's own U-Net, not put in its place."""
    study = study_module.load_study(QUICK, model)
    run = next(one for one in find_runs(runs)[0] if one.mechanism == "unclip")
    styled, _ = load_study_pipeline(study, run, STYLE)
    own, _ = load_study_pipeline(study, run, ALONE)
    plain, fine_tuned = mini.pipeline(weights=model), mini.pipeline(style="lines", weights=model)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    added, change = (
        one.unet.get_parameter(name) - other.unet.get_parameter(name)
        for one, other in ((styled, own), (fine_tuned, plain))
    )
    assert change.abs().max() > 0
    assert torch.allclose(added, change, atol=1e-6)


def test_edges_come_from_another_that_draws_the_same_colors() -> None:
    def subject(number: int, **attributes: str) -> Subject:
        return Subject(number, "combinations", Character("dylan", attributes), Image.new("RGB", (8, 8)))

    bald, pink, blue = subject(0, skin="tan"), subject(1, skin="tan", hair="pink"), subject(2, hair="blue")
    assert find_edge_giver([bald, pink, blue], 0) is pink
    assert find_edge_giver([bald, pink, blue], 2) is pink
    assert find_edge_giver([bald, pink, blue], 1) is blue, "none has all, so the next one"


def test_edges_are_nearer_to_the_own_control_than_to_others() -> None:
    pictures = [subject.picture for subject in sample_subjects("combinations", 3)]
    controls = [mini.edge_picture(picture, picture.width) for picture in pictures]
    assert min(measure_edge_gaps(pictures, controls)) > 0.3
    assert max(measure_edge_gaps([*pictures[1:], pictures[0]], controls)) < 0


def test_line_drawings_are_told_from_colored_ones() -> None:
    pictures = [subject.picture for subject in sample_subjects("combinations", 4)]
    assert min(measure_line_shares(draw_line_pictures(pictures))) > 0.99
    assert max(measure_line_shares(pictures)) < 0.6
    assert measure_line_shares([Image.new("RGB", (8, 8), "white")]).tolist() == [0]


# Comparing


def score(mechanism: str, seed: int, subject: int, kept: float, **more: Any) -> StudyScore:
    values: dict[str, Any] = {
        "split": "combinations",
        "condition": ALONE,
        "scale": 1.0,
        "style": "dylan",
        "all_kept": False,
        "asked": None,
        "rank": 0,
        "similarity": 0.5,
        "wrong": "",
        "text": "",
        "diversity": None,
        "edges": None,
        "lines": None,
    }
    return StudyScore(
        **values | {"mechanism": mechanism, "seed": seed, "subject": subject, "kept": kept} | more
    )


def build_scores(kept: Callable[[str, int, int], float], other: str = "concatenated") -> StudyScores:
    """Twenty characters, seeds 1 to 3."""
    every = itertools.product((DECOUPLED, other), (1, 2, 3), range(20))
    return StudyScores([score(*one, kept(*one)) for one in every])


def test_a_difference_is_told_from_noise_that_both_share() -> None:
    """What makes a character hard is hard for both: the intervals overlap, the difference is clear."""
    scores = build_scores(lambda name, seed, place: 0.02 * place + 0.01 * (name == DECOUPLED))
    ours, theirs = scores.measure_interval(DECOUPLED, KEPT), scores.measure_interval("concatenated", KEPT)
    assert ours is not None
    assert theirs is not None
    assert ours.low < theirs.high
    difference = scores.measure_difference(KEPT, "concatenated")
    assert difference is not None
    assert difference.verdict == "better"
    assert difference.interval.mean == pytest.approx(0.01)
    assert difference.detectable == pytest.approx(0)


def test_seeds_that_lie_apart_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=(30, 1)) + np.array([-1.0, 0.0, 1.0])
    both, characters = bootstrap_both(values), bootstrap_interval(values.mean(axis=1))
    assert both.mean == pytest.approx(characters.mean)
    assert both.high - both.low > 2 * (characters.high - characters.low)
    assert bootstrap_both(values[:, :1]) == bootstrap_interval(values[:, 0])


def test_a_seed_that_disagrees_leaves_it_open() -> None:
    difference = Difference("x", "unclip", Interval(0.1, 0.05, 0.2), [0.2, 0.2, -0.1])
    assert difference.verdict == "cannot be told"
    assert difference._replace(by_seed=[0.1]).verdict == "better"
    assert difference._replace(by_seed=[-0.1], interval=Interval(-0.1, -0.2, -0.05)).verdict == "worse"


def test_only_seeds_that_both_have_are_compared() -> None:
    scores = build_scores(lambda name, seed, place: 0.1 * seed * (name == DECOUPLED))
    fewer = StudyScores([one for one in scores.scores if one.mechanism == DECOUPLED or one.seed == 2])
    difference = fewer.measure_difference(KEPT, "concatenated")
    assert difference is not None
    assert difference.interval.mean == pytest.approx(0.2)
    assert len(difference.by_seed) == 1
    strangers = [replace(one, seed=9) for one in scores.scores if one.mechanism != DECOUPLED]
    assert StudyScores([*fewer.scores[:60], *strangers]).measure_difference(KEPT, "concatenated") is None


def test_a_character_with_several_texts_counts_once() -> None:
    texts = [score(DECOUPLED, 1, 0, 1.0, condition=TEXT, asked=asked) for asked in (True, False)]
    scores = StudyScores([*texts, score(DECOUPLED, 1, 1, 1.0, condition=TEXT, asked=True)])
    assert scores.collect_values(DECOUPLED, TEXT_FOLLOWED, 1) == [0.5, 1.0]


def test_mechanisms_are_listed_by_what_can_be_said() -> None:
    verdicts = {"a": "better", "b, hidden 9": "cannot be told", "c": "better", "d": "better"}
    assert (
        describe_verdicts(verdicts) == "better than “a”, “c” and “d”, not distinguishable from “b, hidden 9”"
    )


def run(mechanism: str, parameters: int, **changes: Any) -> StudyRun:
    metadata = {"injection": mechanism, "parameters": str(parameters)}
    return StudyRun(Path(mechanism), config(**changes), metadata, "digest")


def test_the_verdict_says_whether_parameters_are_equal() -> None:
    differences = [
        Difference(KEPT.name, "concatenated", Interval(0.1, 0.05, 0.2), [0.1]),
        Difference(KEPT.name, "unclip", Interval(0.1, -0.05, 0.2), [0.1]),
        Difference(AREA, "unclip", Interval(0.1, 0.05, 0.2), [0.1]),
    ]
    ours, theirs = run(DECOUPLED, 603_264), run("unclip", 9)
    equal = write_verdict([ours, run("concatenated", 602_827), theirs], differences)
    assert equal == (
        "With equally many parameters, decoupled is better than concatenated (attributes kept "
        "+0.100 [+0.050, +0.200], 1 seed). Of those that train the whole U-Net too, it is "
        "not distinguishable from “unclip”. "
        "With text, over the scale, its area is better than “unclip”."
    )
    fewer = write_verdict([ours, run("concatenated", 197_760), theirs], differences)
    assert "With 197,760 parameters against 603,264, decoupled is better" in fewer
    assert write_verdict([ours], []).endswith("to compare with.")
    several = [*differences[:1], Difference(KEPT.name, "style-adapter", Interval(0, -0.1, 0.1), [0])]
    first = write_verdict([ours, run("concatenated", 197_760), run("style-adapter", 603_000)], several)
    assert re.match("With equally many parameters, whether .* style-adapter", first)


def draw_curve(mechanism: str, kept: Callable[[float], float]) -> list[StudyScore]:
    """A mechanism of which text is followed by fewer characters as its scale grows."""
    return [
        score(mechanism, 1, place, kept(scale), condition=TEXT, scale=scale, asked=place >= 4 * scale)
        for scale in (0.5, 1.0, 1.5)
        for place in range(10)
    ]


def test_what_is_merely_turned_up_is_not_better_and_what_keeps_more_of_both_is() -> None:
    base = [score(BASE_ALONE, 0, place, 0.1, condition=TEXT, asked=True) for place in range(10)]
    every = [*base, *draw_curve(DECOUPLED, lambda scale: 0.5 * scale)]
    every += draw_curve("like", lambda scale: 0.5 * scale) + draw_curve("less", lambda scale: 0.2 * scale)
    scores, scales = StudyScores(every), [0.5, 1.0, 1.5]
    ours, like, less = (follow_both(scores, name, scales) for name in (DECOUPLED, "like", "less"))
    assert ours is not None
    assert like is not None
    assert less is not None
    assert ours.mean(axis=-1).tolist() == [pytest.approx([0.8, 0.6, 0.4]), pytest.approx([0.25, 0.5, 0.75])]
    assert area_difference(ours, like) == (0, 0, 0)
    tradeoff = measure_tradeoff(scores, scales)
    assert [*tradeoff.curves] == [DECOUPLED, "like", "less"]
    assert [(one.other, one.verdict) for one in tradeoff.differences] == [
        ("like", "cannot be told"),
        ("less", "better"),
    ]
    assert tradeoff.differences[1].interval == area_difference(ours, less)
    strangers = [replace(one, seed=2) if one.mechanism == "less" else one for one in every]
    assert [one.other for one in measure_tradeoff(StudyScores(strangers), scales).differences] == ["like"]
    assert measure_tradeoff(scores, [1.0]) == ({}, [])


# Runs


def test_a_stored_result_comes_back_and_only_for_its_key(tmp_path: Path) -> None:
    """Scores as they were, images nearly so: a page shows them."""
    colors = {"one, scale 1": ["navy", "white"], "other": ["gold"]}
    pictures = {name: [Image.new("RGB", (32, 32), one) for one in some] for name, some in colors.items()}
    result = RunResult([score(DECOUPLED, 1, 0, 0.5, edges=0.1, rank=None)], pictures)
    save_result(tmp_path / "run", "key", result)
    again = load_result(tmp_path / "run", "key")
    assert again is not None
    assert again.scores == result.scores
    assert {name: len(some) for name, some in again.pictures.items()} == {"one, scale 1": 2, "other": 1}
    for name, some in again.pictures.items():
        for one, before in zip(some, pictures[name], strict=True):
            assert np.abs(np.asarray(one, float) - np.asarray(before, float)).mean() < 10
    assert load_result(tmp_path / "run", "another key") is None
    (tmp_path / "run" / "study.webp").write_bytes(b"RIFF damaged")
    assert load_result(tmp_path / "run", "key") is None


@pytest.mark.slow
def test_measured_runs_can_be_compared_after_their_weights_are_deleted(
    runs: Path, model: Path, report: Path, tmp_path: Path
) -> None:
    for place in (path for path in runs.iterdir() if (path / "study.json.gz").is_file()):
        copytree(place, tmp_path / place.name, ignore=ignore_patterns("*.safetensors"))
    findings = evaluate_study(runs=tmp_path, output=tmp_path / "again", weights=model, settings=QUICK)
    summary = json.loads((report / "summary.json").read_text())
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["runs"] == summary["runs"]
    assert again["differences"] == summary["differences"]
    assert findings.verdict == summary["verdict"]
    with pytest.raises(ConfigError, match="its weights have been deleted since: train it again"):
        evaluate_study(
            runs=tmp_path, output=tmp_path / "other", weights=model, settings=replace(QUICK, others=2)
        )


def test_a_result_depends_on_adapter_weights_and_settings() -> None:
    others = [("b", "w", QUICK), ("a", "v", QUICK), ("a", "w", replace(QUICK, scales=()))]
    assert len({build_result_key(*one) for one in [("a", "w", QUICK), *others]}) == 4


def test_runs_that_are_not_alike_are_said_to_differ() -> None:
    training = config()["training"]
    runs = [run(DECOUPLED, 1), run("unclip", 1, training=training | {"steps": 9})]
    assert list_differences(runs) == ["training.steps is 500 and 9"]
    assert list_differences(runs[:1]) == []


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(json.dumps(config()))
    with pytest.raises(ConfigError, match="holds no finished run"):
        evaluate_study(runs=tmp_path, output=tmp_path / "report", settings=QUICK)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"model": "x/y", "image_encoder": "known"}}, "is a run on x/y of the variant base"),
        ({"adapter": {"variant": "plus"}}, "is a run on mini of the variant plus"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused(
    runs: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy_run(runs / "concatenated-1", tmp_path / "run", config(**changes))
    with pytest.raises(ConfigError, match=message):
        find_runs(tmp_path)


def test_an_adapter_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "run" / "adapter.safetensors")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config()))
    with pytest.raises(ConfigError, match=r"adapter\.safetensors was not written by imprompt train"):
        find_runs(tmp_path)


def test_two_runs_of_one_mechanism_and_seed_are_refused(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        copy_run(runs / "concatenated-1", tmp_path / name, config())
    with pytest.raises(ConfigError, match=r"one and other in .* are both concatenated with seed 1"):
        find_runs(tmp_path)


def copy_run(source: Path, folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes((source / "adapter.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(settings))


def test_the_large_concatenated_run_has_as_many_parameters_as_the_decoupled_one() -> None:
    """With the embedded model's own sizes and the width that scripts/study says."""
    base = parse_recipe({"stage": "base", "steps": 1}, "test")
    encoder = parse_recipe({"stage": "encoder", "steps": 1}, "test")
    assert isinstance(base, BaseRecipe)
    assert isinstance(encoder, EncoderRecipe)
    hidden = re.search(r"adapter\.hidden=(\d+)", Path("scripts/study").read_text())
    assert hidden is not None
    sizes = encoder.embedding_dim, base.text_width, 4
    unet = build_unet(base, 48, base.text_width, sample_size=8)
    ours = ImagePromptAdapter.for_unet(unet, LinearProjection(*sizes))
    large = HiddenProjection(*sizes, hidden=int(hidden[1]))
    counts = [sum(value.numel() for value in one.parameters()) for one in (ours, large)]
    assert counts[1] == pytest.approx(counts[0], rel=0.001)
