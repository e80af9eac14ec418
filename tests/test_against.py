"""One report against an earlier one: read back whole, paired by concept, or refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from imprompt.encoder import ImageEncoder
from imprompt.errors import ConfigError
from imprompt.evaluation.against import MEASURES, Earlier, against_figures, load_earlier, verdict
from imprompt.evaluation.asking import Asking
from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.metrics import Interval
from imprompt.evaluation.pictures import HeldOut, load_held_out
from imprompt.evaluation.report import write_scores
from imprompt.evaluation.sampling import Models, Settings
from imprompt.evaluation.scoring import PROMPTED, WITH_TEXT, Score
from imprompt.evaluation.suites import evaluate
from imprompt.mini import WEIGHTS

USED = {"seeds": 2, "steps": 1, "guidance_scale": 7.5, "asking": {"things": ["face"]}, "concepts": 3}
JUDGE = {"fingerprint": "abc"}
SUMMARY = {"suite": "mini", "adapter": {"name": "mini"}, "settings": USED, "judge": JUDGE}


def score(concept: str, seed: int, gap: float | int, condition: str = PROMPTED) -> Score:
    return Score(
        condition=condition,
        concept=concept,
        style="noto",
        is_twin=concept == "b",
        seed=seed,
        similarity=0.1 + gap,
        gap=gap,
        rank=seed,
        gallery=9,
        ground="red",
        asked_gap=-gap,
        scale=1.0,
        distance=0.25 if condition == PROMPTED else None,
    )


SCORES = [
    score(concept, seed, gap + 0.01 * seed)
    for concept, gap in (("a", 0.1), ("b", 0.7), ("c", -0.2))
    for seed in range(2)
]
SCORES += [score(concept, 0, gap, WITH_TEXT) for concept, gap in (("a", 0.3), ("b", 0.1), ("c", 0.2))]


def written(folder: Path, **changes: object) -> Path:
    write_scores(SCORES, folder)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return folder


def differences(scores: list[Score], earlier: list[Score]) -> dict[str, dict[str, Interval]]:
    return against_figures(scores, Earlier("mini", earlier))["differences"]


def test_scores_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    earlier = load_earlier(written(tmp_path), USED, JUDGE)
    assert (earlier.name, list(earlier.scores)) == ("mini", SCORES)


def test_a_report_does_not_differ_from_itself() -> None:
    found = differences(SCORES, SCORES)
    assert list(found) == [measure.name for measure in MEASURES]
    minus = [one["difference"] for one in found.values()]
    assert all(one == (0, 0, 0) and verdict(one) == "cannot be told" for one in minus)


def test_a_shift_of_every_concept_is_sure_however_unlike_the_concepts_are() -> None:
    shifted = [replace(one, gap=one.gap + 0.02) for one in SCORES]
    gap = differences(shifted, SCORES)["gap to shuffled"]
    assert gap["difference"] == pytest.approx((0.02, 0.02, 0.02))
    assert gap["this"].high - gap["this"].low > 0.3
    assert verdict(gap["difference"]) == "more"
    assert verdict(differences(SCORES, shifted)["gap to shuffled"]["difference"]) == "less"


def test_what_only_one_report_has_is_not_compared() -> None:
    single = [one for one in SCORES if one.seed == 0]
    single = [replace(one, distance=None) for one in single]
    assert "diversity" not in differences(single, SCORES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "coco"}, "is a report of the suite 'coco', not of 'mini'"),
        ({"settings": USED | {"steps": 25}}, "steps was 25 there and is 1 here"),
        ({"judge": {"fingerprint": "other"}}, "another judge scored there"),
        ({"settings": None}, "holds no report that this version wrote"),
        ({"adapter": None}, "holds no report that this version wrote"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_earlier(written(tmp_path, **changes), USED, JUDGE)


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be compared with"):
        load_earlier(tmp_path, USED, JUDGE)
    written(tmp_path)
    (tmp_path / "scores.csv").write_text("condition,concept\nimage prompt,a\n")
    with pytest.raises(ConfigError, match="cannot be compared with"):
        load_earlier(tmp_path, USED, JUDGE)


def test_an_evaluation_says_how_it_differs_from_an_earlier_one(tmp_path: Path) -> None:
    pipe, held_out = tiny.sd_pipeline(), load_held_out()
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    models = Models(pipe, adapter, load_judge(WEIGHTS / "judge"), "tiny")
    settings = Settings(seeds=2, steps=1, batch_size=12, asking=Asking(("face", "clock")), curve=2)
    names = {one.concept for one in held_out.references(3)}
    few = HeldOut([one for one in held_out.drawings if one.concept in names], held_out.pictures)
    first, second = tmp_path / "first", tmp_path / "second"
    assert evaluate(models, few, settings, output=first)["against"] is None
    against = evaluate(models, few, settings, output=second, against=first)["against"]
    assert against["adapter"] == "tiny"
    assert list(against["differences"]) == [measure.name for measure in MEASURES]
    assert all(
        one["difference"].mean == pytest.approx(0, abs=1e-6) for one in against["differences"].values()
    )
    assert "Against “tiny”" in (second / "index.html").read_text(encoding="utf-8")
