"""The measurements run; nothing is timed here."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

import tiny

BENCH = Path(__file__).parent.parent / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_attention_overhead_measures_three_arms_and_leaves_the_pipeline_alone() -> None:
    bench, pipe = load("attention_overhead"), tiny.sd_pipeline()
    processors = dict(pipe.unet.attn_processors)
    seconds = bench.measure(pipe, tiny.adapter(pipe.unet), steps=2, rounds=2)
    assert {name: len(values) for name, values in seconds.items()} == {"none": 2, "ours": 2, "diffusers": 2}
    assert min(min(values) for values in seconds.values()) > 0
    assert all(pipe.unet.attn_processors[name] is processors[name] for name in processors)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_attention_overhead_prints_ratios(
    form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", str(tmp_path), "--steps", "2", "--rounds", "1"]
    assert load("attention_overhead").main([*options, *form]) == 0
    printed = capsys.readouterr().out
    assert "ours/none" in printed
    assert "ours/diffusers" in printed
    if form:
        assert json.loads(printed)["model"] == "tiny random"
