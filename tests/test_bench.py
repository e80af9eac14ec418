"""The measurements run; nothing is timed here."""

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest
import torch
from PIL import Image

import tiny
from imprompt import mini

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
    contestants = bench.pipeline_arms(pipe, tiny.adapter(pipe.unet))
    seconds = bench.measure(contestants, steps=2, rounds=2)
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


@pytest.mark.parametrize("base", ["flux-xlabs", "flux-instantx", "sd35"])
def test_attention_overhead_measures_transformers(
    base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = load("attention_overhead")
    for name, value in {"SIDE": 4, "HEADS": 1, "TEXT_LENGTH": 4, "PATCHES": 4}.items():
        monkeypatch.setattr(bench, name, value)
    assert bench.main(["--base", base, "--steps", "2", "--rounds", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert ("ours/diffusers" in result) == (base != "flux-instantx")
    if base == "flux-instantx":
        assert result["MB of K' and V', as published"] == pytest.approx(89.7, abs=0.1)
        assert result["MB of their weights, as published"] == pytest.approx(2868.9, abs=0.1)


def test_attention_overhead_takes_the_adapters_of_diffusers_at_their_word() -> None:
    """What is compared computes the same."""
    bench = load("attention_overhead")
    transformer, adapter = bench.random_transformer("flux-xlabs")
    embedding, call = torch.randn(1, bench.EMBEDDING), bench.transformer_call("flux-xlabs")
    with torch.no_grad(), adapter.attach(transformer), adapter.use(embedding):
        ours = transformer(**call).sample
    transformer._load_ip_adapter_weights([bench.nest_tensors(adapter)])
    prompts = {"ip_adapter_image_embeds": [embedding[:, None]]}
    with torch.no_grad():
        theirs = transformer(**call, joint_attention_kwargs=prompts).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_serving_gives_every_server_the_same_requests_and_sums_up_in_seconds() -> None:
    bench = load("serving")
    first, second = (list(itertools.islice(bench.make_requests(), 20)) for _ in range(2))
    assert first == second
    assert {request["steps"] for request in first} == {*bench.STEPS}
    summary = bench.summarize([[1.0] * 5, [3.0] * 10, [2.0] * 20], seconds=10)
    assert (summary["requests/s"], summary["slowest round"], summary["fastest round"]) == (1.0, 0.5, 2.0)
    assert (summary["P50"], summary["P99"], summary["requests"]) == (2.0, 3.0, 35)


@pytest.mark.slow
def test_serving_measures_three_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("serving").main(["--users", "2", "--seconds", "20", "--rounds", "1", "--json"]) == 0
    servers = json.loads(capsys.readouterr().out)["servers"]
    assert [*servers] == ["ours", "one at a time", "plain"]
    assert all(server["requests"] > 0 for server in servers.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_gpu_script_runs_every_rung_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    output = tmp_path / "gpu.json"
    words = ["--tiny", "--steps", "1", "--rounds", "1", "--minutes", "60", "--output", str(output)]
    assert load("gpu").main(words) == 0
    result = json.loads(output.read_text())
    for base in ("sd15", "sdxl"):
        rungs = {name: one for name, one in result[base].items() if name != "ratios"}
        assert all(isinstance(one, dict) for one in rungs.values()), rungs
        ours = [one for name, one in rungs.items() if name.startswith("ours")]
        assert max(one["largest difference from diffusers"] for one in ours) < 1e-4
        assert rungs["ours, CUDA graph"]["graphs"] == 1
    assert result["training"]["model"] == "tiny"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, about PIL's pictures
def test_speeds_are_judged_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    words = ["--subjects", "4", "--arms", "fast", "OpenVINO", "--output", str(tmp_path)]
    assert load("speed_quality").main(words) == 0
    arms = json.loads((tmp_path / "results.json").read_text())["arms"]
    assert [*arms] == ["exact", "fast", "OpenVINO"]
    assert arms["exact"]["loss: attributes kept"] == [0, 0, 0]
    assert arms["fast"]["FLOP of the first"] > 2
    assert arms["OpenVINO"]["loss: attributes kept"] == [0, 0, 0]
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_sheet_of_adapters_has_the_references_and_a_row_for_each(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert load("adapter_sheet").main(["mini", "mini-plus", "--subjects", "1", "--output", str(sheet)]) == 0
    with Image.open(sheet) as picture:
        assert picture.width < 2 * mini.SIZE
        assert 3 * mini.SIZE <= picture.height < 4 * mini.SIZE
