"""Our gradients are the official script's step's, and the measurement of both runs; nothing is timed here."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("training_step")


@pytest.fixture
def pair(bench: Any) -> Iterator[Any]:
    with bench.duel(bench.CASES["tiny"], "fp32") as pair:
        yield pair


def differentiate(pair: Any, draws: Any) -> tuple[torch.Tensor, torch.Tensor]:
    theirs = pair.reference.differentiate(pair.rows(0), draws)
    batch = pair.batch(0)._replace(draws=draws)
    return theirs, pair.run.objective.differentiate(batch, lambda loss: loss.backward())["loss"]


def test_every_gradient_is_the_reference_steps(bench: Any, pair: Any) -> None:
    no_image, no_text = torch.tensor([[True, True, False, False], [True, False, True, False]])
    draws = pair.batch(0).draws._replace(no_image=no_image, no_text=no_text)
    torch.testing.assert_close(*differentiate(pair, draws))
    trained = dict(pair.run.objective.trained.named_parameters())
    found = bench.deviations(bench.taken(trained), bench.taken(pair.reference.trained))
    assert found.keys() == trained.keys()
    assert 0 < max(found.values()) <= 1e-5


def test_another_gradient_is_noticed_and_named(bench: Any, pair: Any) -> None:
    differentiate(pair, pair.batch(0).draws)
    ours = bench.taken(dict(pair.run.objective.trained.named_parameters()))
    theirs = bench.taken(pair.reference.trained)
    bench.check(bench.deviations(ours, theirs), 1e-5)
    name = "layers.3.to_key.weight"
    ours[name][0, 0] += 1e-4 * ours[name].abs().max()
    with pytest.raises(AssertionError, match=r"layers\.3\.to_key\.weight deviates by"):
        bench.check(bench.deviations(ours, theirs), 1e-5)
    ours[name][0, 0] = torch.nan
    with pytest.raises(AssertionError, match="deviates by nan"):
        bench.check(bench.deviations(ours, theirs), 1e-5)


def test_the_reference_leaves_no_layer_behind(pair: Any) -> None:
    processors = dict(pair.base.unet.attn_processors)
    pair.reference.step(pair.rows(0), pair.batch(0).draws)
    assert all(pair.base.unet.attn_processors[name] is processors[name] for name in processors)
    assert "step loss" in pair.reference.printed.getvalue()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_it_prints_both_and_what_stays_as_it_was(
    form: list[str], bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--model", "tiny", "--steps", "1", "--rounds", "1", *form]) == 0
    printed = capsys.readouterr().out
    if not form:
        assert "seconds per sample" in printed
        assert "unchanged" in printed
        return
    (result,) = json.loads(printed)
    assert result["frozen weights unchanged"]
    assert result["frozen weights with a gradient"] == 0
    assert 0 < result["largest deviation of a gradient"]["ours"] <= 1e-5
    assert min(side["median"] for side in result["seconds per sample"].values()) > 0
    assert result["GFLOP"]["reference"] > result["GFLOP"]["ours"] > 0
    assert result["MB of a checkpoint"]["reference"] > result["MB of a checkpoint"]["ours"]
