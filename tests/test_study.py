"""The same-base study: runs are found, measured once and compared fairly; what cannot be told is not."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt import mini
from imprompt.adapter import ImagePromptAdapter
from imprompt.errors import ConfigError
from imprompt.evaluation import study as study_module
from imprompt.evaluation.figures.compared import COMPARED, comparison
from imprompt.evaluation.metrics import Interval, area_difference
from imprompt.evaluation.study import NOTHING, Settings, evaluate_study, load_study, measured_runs
from imprompt.evaluation.study.balance import balance_sentences, minus, weigh
from imprompt.evaluation.study.comparing import FIVE, GAP, OURS, Difference, Scores, grouped, sentence
from imprompt.evaluation.study.measuring import placed
from imprompt.evaluation.study.page import verdict
from imprompt.evaluation.study.runs import Score, StudyRun, differences, find_runs, packed, unpacked
from imprompt.evaluation.study.settings import CONDITIONS, IMAGE, STYLE, TEXT, at_scale
from imprompt.injection import ConcatenatedInjection, DecoupledInjection, TimeProjection, UnclipInjection
from imprompt.projection import LinearProjection

QUICK = Settings(concepts=4, others=3, steps=1, batch_size=4, scales=(0.5,))


def config(seed: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "base": {"model": "mini", "image_encoder": "known"},
        "adapter": {"variant": "base", "hidden": 0},
        "data": {"source": "pictures"},
        "loss": {"image_drop": 0.05},
        "training": {"seed": seed, "steps": 500, "batch_size": 32, "learning_rate": 1e-3},
    } | changes


def write_run(folder: Path, injection: Any, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    injection.save(folder / "adapter.safetensors", {"seed": str(settings["training"]["seed"])})
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoupled, a concatenated and an unCLIP run, and one that has not finished."""
    folder, pipe = tmp_path_factory.mktemp("runs"), mini.pipeline()
    linear = LinearProjection(256, 192, 4, generator=torch.Generator().manual_seed(0))
    ours = DecoupledInjection(ImagePromptAdapter.for_unet(pipe.unet, linear), pipe)
    write_run(folder / "decoupled-1", ours, config())
    ours.detach()
    write_run(folder / "concatenated-1", ConcatenatedInjection(linear, pipe), config())
    write_run(folder / "unclip-1", UnclipInjection(TimeProjection(256, 384), pipe), config())
    (folder / "unclip-2").mkdir()
    (folder / "unclip-2" / "config.json").write_text(json.dumps(config(2)))
    return folder


@pytest.fixture(scope="module")
def summary(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return evaluate_study(tmp_path_factory.mktemp("report"), runs, settings=QUICK)


def test_every_finished_run_is_measured_and_reported(summary: dict[str, Any], runs: Path) -> None:
    assert {name: one["mechanism"] for name, one in summary["runs"].items()} == {
        "concatenated-1": "concatenated",
        "decoupled-1": "decoupled",
        "unclip-1": "unclip",
    }
    assert {one["decoupled minus"] for one in summary["differences"]} == {"concatenated", "unclip"}
    assert all((runs / name / "study.json").is_file() for name in (*summary["runs"], ".base"))
    assert "with 197,760 parameters against 603,264" in summary["verdict"]


def test_a_second_call_measures_nothing_and_says_the_same(
    summary: dict[str, Any], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "measure", lambda *_: pytest.fail("measured again"))
    again = evaluate_study(tmp_path / "report", runs, settings=QUICK)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert all(f"the paper’s figure {number}" in page for number in (3, 4, 6, 9, 10))
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", "index-small.html", "summary.json", "scores.csv"} <= written
    lines = (tmp_path / "report" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * (4 + 3 * 3) + 3 * 3  # three of the four also at another scale


def test_other_settings_or_another_adapter_are_measured_anew(summary: dict[str, Any], runs: Path) -> None:
    found, unfinished = find_runs(runs)
    assert unfinished == ["unclip-2"]
    key = study_module.key_of
    one, other = found[0], replace(found[0], folder=found[1].folder)
    assert one.digest != other.digest
    keys = {
        key(one.digest, "weights", QUICK),
        key(other.digest, "weights", QUICK),
        key(one.digest, "other weights", QUICK),
        key(one.digest, "weights", replace(QUICK, steps=2)),
    }
    assert len(keys) == 4


def test_comparison_figures_are_made_of_what_is_kept(
    summary: dict[str, Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "measure", lambda *_: pytest.fail("measured again"))
    study, (found, _) = load_study(QUICK), find_runs(runs)
    figures = [comparison(study, measured_runs(study, found, runs), one) for one in COMPARED]
    for figure, number in zip(figures, (3, 6, 9), strict=True):
        assert figure.title.endswith(f"(the paper’s figure {number})")
        assert list(figure.columns)[-4:] == [NOTHING, "decoupled", "concatenated", "unclip"]
        assert figure.sheet(2).height > 200


def test_a_fine_tuned_base_keeps_what_a_mechanism_has_learnt(runs: Path) -> None:
    """The style's change of weights is added to the run's own U-Net, not put in its place."""
    study = load_study(QUICK)
    run = next(one for one in find_runs(runs)[0] if one.injection == "unclip")
    styled, _ = placed(study, run, STYLE)
    own, _ = placed(study, run, IMAGE)
    plain, fine_tuned = mini.pipeline(), mini.pipeline(style="blueprint")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    added, change = (
        one.unet.get_parameter(name) - other.unet.get_parameter(name)
        for one, other in ((styled, own), (fine_tuned, plain))
    )
    assert change.abs().max() > 1e-3
    assert torch.allclose(added, change, atol=1e-5)


# Comparing


def score(mechanism: str, seed: int, concept: int, gap: float, **more: Any) -> Score:
    values: dict[str, Any] = {
        "similarity": 0.5 + gap,
        "ceiling": 0.5,
        "rank": 0,
        "gallery": 9,
        "caption": math.nan,
        "asked_gap": 0.0,
        "on_asked_ground": False,
        "edges": math.nan,
    }
    values |= {"condition": IMAGE, "concept": f"thing {concept}", "gap": gap} | more
    return Score(mechanism=mechanism, seed=seed, **values)


def made(gap: Callable[[str, int, int], float], others: tuple[str, ...] = ("concatenated",)) -> Scores:
    """Twenty concepts, seeds 1 to 3."""
    every = itertools.product((OURS, *others), (1, 2, 3), range(20))
    return Scores([score(name, seed, thing, gap(name, seed, thing)) for name, seed, thing in every])


def test_a_difference_is_told_from_noise_that_both_share() -> None:
    """What makes a concept hard is hard for both: the intervals overlap, the difference is clear."""
    scores = made(lambda name, seed, thing: 0.02 * thing + (0.01 if name == OURS else 0) + 0.0001 * seed)
    ours, theirs = scores.interval(OURS, GAP), scores.interval("concatenated", GAP)
    assert ours is not None
    assert theirs is not None
    assert ours.low < theirs.high
    difference = scores.difference(GAP, "concatenated")
    assert difference is not None
    assert difference.verdict == "better"
    assert difference.interval.mean == pytest.approx(0.01)
    assert scores.spread(OURS, GAP) == pytest.approx(0.0001)
    gap = 0.2002  # 0.02 · 9.5 + 0.01 + 0.0001 · 2
    assert scores.normalised(OURS) == pytest.approx(gap / 0.5)


def test_a_seed_that_disagrees_leaves_it_open() -> None:
    scores = made(lambda name, seed, thing: (0.1 if seed < 3 else -0.01) * (name == OURS))
    difference = scores.difference(GAP, "concatenated")
    assert difference is not None
    assert difference.interval.low > 0
    assert difference.verdict == "cannot be told"


def test_the_other_way_round_is_worse() -> None:
    scores = made(lambda name, seed, thing: -0.1 * (name == OURS))
    difference = scores.difference(GAP, "concatenated")
    assert difference is not None
    assert difference.verdict == "worse"
    assert sentence(difference).startswith("decoupled is worse than concatenated (gap to shuffled -0.100 [")


def test_only_seeds_that_both_have_are_compared() -> None:
    scores = made(lambda name, seed, thing: 0.1 * seed * (name == OURS))
    fewer = Scores([one for one in scores.scores if one.mechanism == OURS or one.seed == 2])
    difference = fewer.difference(GAP, "concatenated")
    assert difference is not None
    assert difference.interval.mean == pytest.approx(0.2)
    assert len(difference.by_seed) == 1
    strangers = [replace(one, seed=9) for one in scores.scores if one.mechanism != OURS]
    assert Scores([*fewer.scores[:60], *strangers]).difference(FIVE, "concatenated") is None


def test_mechanisms_are_listed_by_what_can_be_said() -> None:
    verdicts = {"a": "better", "b, hidden 9": "cannot be told", "c": "better", "d": "better"}
    assert grouped(verdicts) == "better than “a”, “c” and “d”, not to be told from “b, hidden 9”"


def run(injection: str, parameters: int, **changes: Any) -> StudyRun:
    return StudyRun(Path(injection), injection, config(**changes), {"parameters": str(parameters)})


def test_the_verdict_says_whether_parameters_are_equal() -> None:
    difference = Difference(GAP, "concatenated", Interval(0.1, 0.05, 0.2), [0.1])
    ours = run(OURS, 603_264)
    assert "with equally many parameters, decoupled is better" in verdict(
        [ours, run("concatenated", 602_827)], [difference]
    )
    assert "with 197,760 parameters against 603,264" in verdict(
        [ours, run("concatenated", 197_760)], [difference]
    )
    assert verdict([ours], []).endswith("nothing to compare.")


def test_runs_that_are_not_alike_are_said_to_differ() -> None:
    training = config()["training"]
    runs = [run(OURS, 1), run("unclip", 1, training=training | {"steps": 9})]
    assert differences(runs) == ["training.steps is 500 and 9"]
    assert differences(runs[:1]) == []


def asked(mechanism: str, scale: float, thing: int, text: float, image: float) -> Score:
    condition = TEXT if scale == 1 else at_scale(scale)
    return score(mechanism, 1, thing, image, condition=condition, asked_gap=text)


def turned(mechanism: str, image: Callable[[float], float]) -> list[Score]:
    """A mechanism that gives up text as the square of its scale, ten concepts of unlike difficulty."""
    return [
        asked(mechanism, scale, thing, 0.4 * (1 - scale**2 / 4) + 0.01 * thing, image(scale) + 0.01 * thing)
        for scale in (0.5, 1.0, 1.5)
        for thing in range(10)
    ]


def test_what_is_merely_turned_up_is_not_better_and_what_keeps_more_of_both_is() -> None:
    base = [asked(NOTHING, 1, thing, 0.4 + 0.01 * thing, 0.0) for thing in range(10)]
    every = [*base, *turned(OURS, lambda scale: 0.2 * scale), *turned("like", lambda scale: 0.2 * scale)]
    scores = Scores([*every, *turned("worse", lambda scale: 0.1 * scale)])
    conditions = [at_scale(0.5), TEXT, at_scale(1.5)]
    ours, like, worse = (scores.following(name, conditions) for name in (OURS, "like", "worse"))
    assert ours is not None
    assert like is not None
    assert worse is not None
    assert ours[0, 1].mean() == pytest.approx((0.3 + 0.045) / 0.445)
    assert ours[1, 1].mean() == pytest.approx((0.2 + 0.045) / 0.5)
    assert area_difference(ours, like) == (0, 0, 0)
    assert area_difference(ours, worse).low > 0
    assert scores.following(NOTHING, conditions) is None
    assert minus(scores, "worse", conditions) == area_difference(ours, worse)
    weighed = weigh(scores, replace(QUICK, scales=(0.5, 1.5)))
    assert [*weighed.curves] == [OURS, "like", "worse"]
    assert balance_sentences(weighed) == [
        "With text, over the scale, its area is better than “worse”, not to be told from “like”."
    ]
    strangers = [replace(one, seed=2) if one.mechanism == "worse" else one for one in scores.scores]
    assert minus(Scores(strangers), "worse", conditions) is None


def test_a_study_without_other_scales_has_no_curve() -> None:
    assert weigh(Scores([]), replace(QUICK, scales=())) == ({}, {})


# Runs


def test_the_kept_sheet_gives_back_the_very_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    back = unpacked(packed(pictures), 8)[:30]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(pictures, back, strict=True))


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(json.dumps(config()))
    with pytest.raises(ConfigError, match="holds no finished run"):
        evaluate_study(tmp_path / "report", tmp_path, settings=QUICK)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"model": "x/y", "image_encoder": "known"}}, "is a run on x/y of the variant base"),
        ({"adapter": {"variant": "plus"}}, "is a run on mini of the variant plus"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    linear = LinearProjection(256, 192, 4)
    write_run(tmp_path / "run", ConcatenatedInjection(linear, mini.pipeline()), config(**changes))
    with pytest.raises(ConfigError, match=message):
        find_runs(tmp_path)


def test_two_runs_of_one_mechanism_and_seed_are_refused(tmp_path: Path) -> None:
    injection = ConcatenatedInjection(LinearProjection(256, 192, 4), mini.pipeline())
    for name in ("one", "other"):
        write_run(tmp_path / name, injection, config())
    with pytest.raises(ConfigError, match=r"one and other in .* are both concatenated with seed 1"):
        find_runs(tmp_path)


def test_every_condition_is_scored_in_its_own_way(summary: dict[str, Any], runs: Path) -> None:
    study, (found, _) = load_study(QUICK), find_runs(runs)
    results = measured_runs(study, found, runs)
    for (name, _), measured in results.items():
        conditions = [*CONDITIONS, *(["with text, scale 0.5"] if name != NOTHING else [])]
        assert [one.condition for one in measured.scores] == [
            condition for condition in conditions for _ in range(study.count(condition))
        ]
        assert all(math.isnan(one.edges) == (one.condition != "with control") for one in measured.scores)
        assert all(0 < one.ceiling <= 1 and one.rank < one.gallery for one in measured.scores)
