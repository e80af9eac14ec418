"""The fastest way to compute is found by trying, kept for the machine, and a setting means what it says."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import tiny
from imprompt import load_pipeline
from imprompt.attention.chunks import ChunkedAttention, use_chunked_attention
from imprompt.generation import models
from imprompt.runtime import machine, precision
from imprompt.runtime.chunked_attention import CHUNK, attend_in_chunks
from imprompt.runtime.machine import ComputeChoice, Precision, read_choice
from imprompt.runtime.precision import (
    Times,
    choose_computation,
    choose_from,
    find_fastest_precision,
    resolve_precision,
    time_attention,
    time_computation,
    time_layers,
)
from imprompt.training import adapters
from imprompt.training.config import parse_config
from imprompt.training.frozen_base import choose_frozen_precision
from imprompt.training.loop import Run
from short_runs import build_base, config, write_home

AMX = frozenset({"avx512_bf16", "amx_bf16"})
NONE: frozenset[str] = frozenset()


@pytest.fixture(autouse=True)
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_computation.cache_clear()
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path / "cache"))


def times(fp32: float, fp32_last: float, bf16: float, bf16_last: float) -> Times:
    return {
        "fp32": fp32,
        "fp32 channels_last": fp32_last,
        "bf16": bf16,
        "bf16 channels_last": bf16_last,
    }


@pytest.mark.parametrize(
    ("seconds", "flags", "expected"),
    [
        (times(2.0, 2.0, 1.0, 1.0), NONE, ComputeChoice("bf16", False, False, 2.0)),
        (times(2.0, 2.0, 1.0, 0.5), NONE, ComputeChoice("bf16", True, False, 4.0)),
        (times(1.1, 1.1, 1.0, 1.0), NONE, ComputeChoice("fp32", False, False, 1.0)),
        (times(1.1, 1.1, 1.0, 1.0), AMX, ComputeChoice("bf16", False, False, 1.1)),
        (times(0.9, 0.9, 1.0, 1.0), AMX, ComputeChoice("fp32", False, False, 1.0)),
        (times(1.0, 0.8, 300.0, 300.0), NONE, ComputeChoice("fp32", True, False, 1.25)),
        ({"fp32": 1.0, "fp32 channels_last": 0.99}, NONE, ComputeChoice("fp32", False, False, 1.0)),
    ],
)
def test_bfloat16_and_a_layout_are_chosen_where_they_are_worth_it(
    seconds: Times, flags: frozenset[str], expected: ComputeChoice
) -> None:
    assert choose_from(seconds, flags) == expected


@pytest.mark.parametrize(("chunked", "expected"), [(0.5, True), (0.99, False), (3.0, False)])
def test_chunked_attention_is_chosen_where_the_fused_one_is_slower(
    monkeypatch: pytest.MonkeyPatch, chunked: float, expected: bool
) -> None:
    monkeypatch.setattr(precision, "time_layers", lambda ways, **_: dict.fromkeys(ways, 1.0))
    monkeypatch.setattr(precision, "time_attention", lambda _: {"fused": 1.0, "chunked": chunked})
    assert time_computation().chunked_attention == expected


def test_a_hopeless_format_is_not_tried_on_anything_large(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def time_layers(ways: list[str], *, width: int, size: int) -> Times:
        tried.append((width, *ways))
        return {way: 200.0 if way.startswith("bf16") else 1.0 for way in ways}

    monkeypatch.setattr(precision, "time_layers", time_layers)
    monkeypatch.setattr(precision, "time_attention", lambda _: {"fused": 1.0, "chunked": 2.0})
    assert time_computation().precision == "fp32"
    assert tried == [(32, "fp32", "bf16"), (96, "fp32", "fp32 channels_last")]


def test_one_slow_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 9.0, 18.0, 20.0, 21.0, 21.0, 23.0, 30.0, 99.0, 99.0, 101.0])
    monkeypatch.setattr(precision, "ROUNDS", 2)
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    assert precision.time_in_turns({"a": lambda: None, "b": lambda: None}) == {"a": 1, "b": 2}


def test_the_trials_take_time_in_every_way() -> None:
    ways = ["fp32", "bf16 channels_last"]
    for seconds in (time_layers(ways, width=16, size=4), time_attention("bf16")):
        assert min(seconds.values()) > 0


def test_a_machine_is_timed_once_and_another_processor_or_torch_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = []

    def time_once() -> ComputeChoice:
        timed.append(1)
        return ComputeChoice("bf16", True, False, 3.0)

    monkeypatch.setattr(precision, "time_computation", time_once)
    for name, count in (("one", 1), ("one", 1), ("another", 2)):
        choose_computation.cache_clear()
        monkeypatch.setattr(machine, "name_processor", lambda name=name: name)
        assert choose_computation() == ComputeChoice("bf16", True, False, 3.0)
        assert len(timed) == count
    assert resolve_precision("auto") == find_fastest_precision() == "bf16"
    versions = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions(name) + "+new")
    assert read_choice() is None


@pytest.mark.parametrize("is_chunked", [False, True])
def test_auto_loads_a_base_as_this_machine_computes_fastest(
    monkeypatch: pytest.MonkeyPatch, is_chunked: bool
) -> None:
    monkeypatch.setattr(models, "choose_computation", lambda: ComputeChoice("bf16", True, is_chunked, 3.0))
    pipe: Any = load_pipeline("mini", device="cpu", dtype="auto")
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    kinds = [type(processor).__name__ for processor in pipe.unet.attn_processors.values()]
    assert ("ChunkedAttention" in kinds) == is_chunked
    assert load_pipeline("mini", device="cpu").dtype == torch.float32


# Chunked attention


@pytest.mark.parametrize("queries", [1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunked_attention_is_attention(queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, count, 8, generator=generator) for count in (queries, 7))
    value = torch.randn(2, 3, 7, 8, generator=generator)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend_in_chunks(query, key, value), expected)


def test_a_pipeline_with_chunked_attention_draws_the_same_with_and_without_an_adapter() -> None:
    def draw(pipe: Any, adapter: Any) -> tuple[torch.Tensor, torch.Tensor]:
        def latents() -> torch.Tensor:
            generator = torch.Generator().manual_seed(0)
            return pipe("a cat", num_inference_steps=2, output_type="latent", generator=generator).images

        with adapter.attach(pipe):
            alone = latents()
            with adapter.use(torch.ones(1, tiny.EMBEDDING_DIM)):
                return alone, latents()

    pipe: Any = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    expected = draw(pipe, adapter)
    use_chunked_attention(pipe.unet)
    kinds = [type(processor) for processor in pipe.unet.attn_processors.values()]
    assert kinds.count(ChunkedAttention) == len(kinds) // 2
    torch.testing.assert_close(draw(pipe, adapter), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_a_format_that_is_named_is_taken_as_it_is(wanted: Precision) -> None:
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


@pytest.mark.parametrize(("wanted", "expected"), [("fp32", "fp32"), ("auto", "bf16"), ("bf16", "bf16")])
def test_a_cpu_denoises_in_bfloat16_where_that_is_faster(
    home: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "bf16")
    objective: Any = build_short_run(home, wanted).objective
    assert objective.precision == expected
    assert objective.base.dtype == torch.float32


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_a_cpu_says_when_it_computes_in_float32_in_place_of_what_was_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "fp32")
    run = build_short_run(home, wanted)
    assert f'training.precision "{wanted}" has no effect: this processor computes in float32' in run.notes


def test_gradients_in_bfloat16_point_where_those_in_float32_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "bf16")
    exact, rounded = (gradient_of_first_step(build_short_run(home, wanted)) for wanted in ("fp32", "auto"))
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.995


def test_what_the_cache_holds_does_not_depend_on_the_precision(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_fastest_precision", lambda: "bf16")
    exact, rounded = (build_short_run(home, wanted).data["digest"] for wanted in ("fp32", "auto"))
    assert exact == rounded


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


def build_short_run(home: Path, wanted: str) -> Run:
    return adapters.build_run(config(home, f"run-{wanted}", training__precision=wanted), build_base())


def gradient_of_first_step(run: Run) -> torch.Tensor:
    """Of the projection, in one row."""
    (batch,) = next(iter(run.feed(range(1))))
    run.objective.differentiate(batch, lambda loss: loss.backward())
    trained = run.objective.trained.parameters()  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat([weight.grad.flatten() for weight in trained if weight.grad is not None])
