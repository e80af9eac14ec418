"""The fastest number format is found by trying, and a setting means what it says."""

import pytest
import torch

from imprompt.runtime import precision
from imprompt.runtime.precision import TrialTimes, fastest_precision, measure_precisions, resolve_precision
from imprompt.training.config import parse_config
from imprompt.training.frozen import frozen_precision


@pytest.fixture(autouse=True)
def forgetful() -> None:
    fastest_precision.cache_clear()


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
    assert fastest_precision() == expected
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
    monkeypatch.setattr(precision, "fastest_precision", lambda device="cpu": fastest)
    config = parse_config(
        {"preset": "mini", "output": "o", "data": {"source": "x"}, "training": {"precision": wanted}}, "test"
    )
    assert frozen_precision(config, torch.device(device)) == expected


def test_a_base_whose_weights_learn_is_float32_under_auto() -> None:
    values = {
        "preset": "mini",
        "output": "o",
        "data": {"source": "x"},
        "adapter": {"injection": "unclip"},
        "training": {"precision": "auto"},
    }
    config = parse_config(values, "test")
    assert config.training.precision == "auto"
    assert frozen_precision(config, "cuda") == "fp32"
