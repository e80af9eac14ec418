"""The fastest number format is found by trying, and a setting means what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from few_steps import config, frozen, write_home
from imprompt.runtime import precision
from imprompt.runtime.precision import (
    TrialTimes,
    find_fastest_precision,
    measure_precisions,
    resolve_precision,
)
from imprompt.training import adapters
from imprompt.training.config import parse_config
from imprompt.training.frozen_base import choose_frozen_precision
from imprompt.training.loop import Run


@pytest.fixture(autouse=True)
def forgetful() -> None:
    find_fastest_precision.cache_clear()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (TrialTimes(fp32=2.0, bf16=1.0), "bf16"),
        (TrialTimes(fp32=1.16, bf16=1.0), "bf16"),
        (TrialTimes(fp32=1.1, bf16=1.0), "fp32"),
        (TrialTimes(fp32=1.0, bf16=300.0), "fp32"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_worth_its_rounding(
    monkeypatch: pytest.MonkeyPatch, times: TrialTimes, expected: str
) -> None:
    monkeypatch.setattr(precision, "measure_precisions", lambda: times)
    assert find_fastest_precision() == expected
    assert resolve_precision("auto") == expected


def test_a_hopeless_format_is_not_tried_on_anything_large(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def time_block(*, width: int, size: int) -> TrialTimes:
        tried.append(width)
        return TrialTimes(1.0, 200.0)

    monkeypatch.setattr(precision, "time_block", time_block)
    assert measure_precisions().bf16 == 200.0
    assert tried == [32]


def test_the_trial_takes_time_in_both_formats() -> None:
    times = measure_precisions()
    assert times.fp32 > 0
    assert times.bf16 > 0
    assert times.speedup == times.fp32 / times.bf16


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_a_format_that_is_named_is_taken_as_it_is(wanted: precision.Precision) -> None:
    assert resolve_precision(wanted) == wanted


@pytest.mark.parametrize(
    ("wanted", "device", "fastest", "expected"),
    [
        ("auto", "cpu", "bf16", "fp32"),
        ("bf16", "cpu", "bf16", "fp32"),
        ("auto", "cuda", "bf16", "bf16"),
        ("fp16", "cpu", "bf16", "fp32"),
        ("fp32", "cpu", "bf16", "fp32"),
        ("bf16", "cuda", "fp32", "bf16"),
        ("fp16", "cuda", "bf16", "fp16"),
    ],
)
def test_frozen_models_compute_in_what_the_device_is_good_at(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str, fastest: str, expected: str
) -> None:
    monkeypatch.setattr(precision, "find_fastest_precision", lambda device="cpu": fastest)
    config = parse_config(
        {"preset": "mini", "output": "o", "data": {"source": "x"}, "training": {"precision": wanted}}, "test"
    )
    assert choose_frozen_precision(config, torch.device(device)) == expected


def test_a_base_whose_weights_learn_is_float32_under_auto() -> None:
    values = {
        "preset": "mini",
        "output": "o",
        "data": {"source": "x"},
        "adapter": {"mechanism": "unclip"},
        "training": {"precision": "auto"},
    }
    config = parse_config(values, "test")
    assert config.training.precision == "auto"
    assert choose_frozen_precision(config, "cuda") == "fp32"


@pytest.mark.parametrize(("wanted", "expected"), [("fp32", "fp32"), ("auto", "bf16"), ("bf16", "fp32")])
def test_a_cpu_denoises_in_bfloat16_only_if_it_may_choose_and_that_is_faster(
    home: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "bf16")
    objective: Any = few_steps_run(home, wanted).objective
    assert objective.precision == expected
    assert objective.base.dtype == torch.float32


def test_gradients_in_bfloat16_point_where_those_in_float32_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "bf16")
    exact, rounded = (gradient_of_first_step(few_steps_run(home, wanted)) for wanted in ("fp32", "auto"))
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.995


def test_what_the_cache_holds_does_not_depend_on_the_precision(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "bf16")
    exact, rounded = (few_steps_run(home, wanted).data["digest"] for wanted in ("fp32", "auto"))
    assert exact == rounded


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


def few_steps_run(home: Path, wanted: str) -> Run:
    return adapters.build_run(config(home, f"run-{wanted}", training__precision=wanted), frozen())


def gradient_of_first_step(run: Run) -> torch.Tensor:
    """Of the projection, in one row."""
    (batch,) = next(iter(run.feed(range(1))))
    run.objective.differentiate(batch, lambda loss: loss.backward())
    trained = run.objective.trained.parameters()  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat([weight.grad.flatten() for weight in trained if weight.grad is not None])
