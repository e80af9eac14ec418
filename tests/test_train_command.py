"""`imprompt train`, as it is typed: what it does, what it says, how it ends."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_training
from conftest import Result
from imprompt.training.adapters import train_adapter
from imprompt.training.config import load_config

Command = Callable[..., Result]

TEMPLATE = """
preset = "sd15"
output = "{home}/run"
[base]
model = "{home}/base"
image_encoder = "{home}/encoder"
[adapter]
tokens = 2
[data]
source = "{home}/pictures"
size = 16
held_out = 0.2
[cache]
batch_size = 2
[training]
steps = 2
batch_size = 2
precision = "fp32"
log_every = 1
save_every = 1
[watch]
references = 1
sampling_steps = 1
scales = [1.0]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, pictures, a configuration and the run that it makes."""
    folder = tiny_training.write_base(tmp_path_factory.mktemp("home"))
    tiny_training.write_pictures(folder / "pictures", 6)
    (folder / "cats.toml").write_text(TEMPLATE.format(home=folder))
    return folder


@pytest.fixture(scope="module")
def finished_run(home: Path) -> Path:
    """The run's folder."""
    return train_adapter(load_config(home / "cats.toml"))


def says_one_line(result: Result, code: int, *parts: str) -> None:
    assert result.code == code
    assert len(result.error.strip().splitlines()) == 1
    for part in parts:
        assert part in result.error


def test_the_help_names_every_way_in(imprompt: Command) -> None:
    result = imprompt("train", "--help")
    assert result.code == 0
    for word in ("--check", "--cache-only", "--resume", "--set", "--presets", 'preset = "sd15"'):
        assert word in result.output


def test_presets_are_listed(imprompt: Command) -> None:
    result = imprompt("train", "--presets")
    assert result.code == 0
    assert re.search(r"sd15-faceid-plusv2\s+faceid-plusv2", result.output)
    assert "sdxl: stabilityai/stable-diffusion-xl-base-1.0" in result.output


def test_check_looks_at_the_data_and_trains_nothing(imprompt: Command, home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = imprompt("train", home / "cats.toml", "--check", "--set", f"output={run}")
    assert result.code == 0, result.error
    assert "6" in result.output
    assert not run.exists()


def test_the_cache_alone_is_made_without_a_run(imprompt: Command, home: Path, tmp_path: Path) -> None:
    cached = ("--set", f"output={tmp_path / 'run'}", "--set", f"cache.folder={tmp_path / 'cache'}")
    result = imprompt("train", home / "cats.toml", "--cache-only", *cached)
    assert result.code == 0, result.error
    assert "4 samples to train on and 2 held out are in the cache" in result.output
    assert not (tmp_path / "run" / "checkpoints").exists()
    alone = imprompt("train", home / "cats.toml", "--cache-only", *cached, "--set", "data.source=''")
    assert alone.output == result.output


def test_a_run_leaves_everything_that_is_promised(imprompt: Command, home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = ("--set", "training.steps=1", "--set", f"output={run}", "--set", f"cache.folder={home / 'cache'}")
    result = imprompt("train", home / "cats.toml", *steps)
    assert result.code == 0, result.error
    assert str(run / "index.html") in result.output
    for name in ("config.json", "environment.json", "log.jsonl", "index.html", "README.md"):
        assert (run / name).stat().st_size > 0
    for name in ("adapter.safetensors", "samples/000000.png", "checkpoints/000001/state.pt"):
        assert (run / name).stat().st_size > 0
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 1
    assert home.as_posix() not in (run / "README.md").read_text()


def test_a_folder_that_holds_a_run_is_not_overwritten(
    imprompt: Command, home: Path, finished_run: Path
) -> None:
    before = (finished_run / "log.jsonl").read_bytes()
    result = imprompt("train", home / "cats.toml")
    says_one_line(result, 1, "holds a run already: --resume latest goes on with it")
    assert (finished_run / "log.jsonl").read_bytes() == before


def test_a_finished_run_is_resumed_to_the_same_adapter_and_may_go_on(
    imprompt: Command, home: Path, finished_run: Path
) -> None:
    before = (finished_run / "adapter.safetensors").read_bytes()
    assert imprompt("train", home / "cats.toml", "--resume", "latest").code == 0
    assert (finished_run / "adapter.safetensors").read_bytes() == before
    longer = imprompt("train", home / "cats.toml", "--resume", "latest", "--set", "training.steps=3")
    assert longer.code == 0, longer.error
    assert (finished_run / "adapter.safetensors").read_bytes() != before
    shorter = imprompt("train", home / "cats.toml", "--resume", "latest")
    says_one_line(shorter, 1, "has taken 3 steps already; training.steps is 2")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapter.tokens=3", "when the run in"),
        ("adapter.variant=plus", "put it back, or begin another run"),
        ("training.seed=1", "training.seed was 0"),
        ("training.batch_size=4", "training.batch_size was 2"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(
    imprompt: Command, home: Path, finished_run: Path, setting: str, message: str
) -> None:
    result = imprompt("train", home / "cats.toml", "--resume", "latest", "--set", setting)
    says_one_line(result, 1, message)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "name a configuration file; imprompt train --presets lists"),
        (("none.toml",), 1, "none.toml: no such"),
        (("CONFIG", "--resume", "best"), 1, "--resume takes latest, not 'best'"),
        (("CONFIG", "--set", "steps"), 1, "--set takes key=value, not 'steps'"),
        (("CONFIG", "--set", "training.stops=3"), 1, "unknown key 'stops'; did you mean 'training.steps'?"),
        (("CONFIG", "--set", "output=OTHER", "--set", "base.model=OTHER/base"), 1, "base"),
        (("CONFIG", "--set", "output=OTHER", "--set", "base.image_encoder=OTHER/encoder"), 1, "encoder"),
        (("CONFIG", "--set", "output=OTHER", "--set", "base.image_encoder=known"), 1, "no encoder is known"),
        (("CONFIG", "--set", "output=OTHER", "--set", "data.source=OTHER/pictures"), 1, "pictures"),
        (("CONFIG", "--set", "output=OTHER", "--set", "data.columns.mask=m"), 1, "data.columns.mask"),
        (("CONFIG", "--set", "output=OTHER", "--set", "adapter.start=nobody"), 1, "no adapter 'nobody'"),
        (("CONFIG", "--set", "output=OTHER", "--set", "watch.judge=OTHER"), 1, "no "),
    ],
)
def test_what_cannot_be_done_is_one_line(
    imprompt: Command, home: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    named = [
        word.replace("CONFIG", str(home / "cats.toml")).replace("OTHER", str(tmp_path / "x"))
        for word in words
    ]
    says_one_line(imprompt("train", *named), code, message)
    assert not (tmp_path / "x" / "checkpoints").exists()


def test_corrupt_pictures_are_named(imprompt: Command, home: Path, tmp_path: Path) -> None:
    """One is left out; two of eight are too many."""
    pictures = tiny_training.write_pictures(tmp_path / "pictures", 6)

    def spoil(name: str) -> None:
        (pictures / f"{name}.png").write_bytes(b"no picture")
        (pictures / f"{name}.txt").write_text("nothing")

    settings = [f"output={tmp_path / 'run'}", f"cache.folder={tmp_path / 'c'}", f"data.source={pictures}"]
    words = [word for setting in settings for word in ("--set", setting)]
    spoil("bad")
    result = imprompt("train", home / "cats.toml", "--cache-only", *words)
    assert result.code == 0, result.error
    assert "4 samples to train on" in result.output
    assert "left out: " in result.output
    assert "bad.png" in result.output
    (skipped,) = (tmp_path / "c").rglob("skipped*.jsonl")
    assert "bad.png" in skipped.read_text()
    checked = imprompt("train", home / "cats.toml", "--check", *words)
    assert "bad.png" in checked.output
    spoil("worse")
    refused = imprompt("train", home / "cats.toml", "--cache-only", *words)
    says_one_line(refused, 1, "2 of the 8 samples of", "bad.png")
