"""A run that is killed, interrupted or out of disk ends with the weights of one that was not."""

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_training
import training_processes
from imprompt.checkpoint import load_adapter
from imprompt.errors import OutputError
from imprompt.training.adapters import train_adapter
from imprompt.training.checkpoints import Checkpoints
from imprompt.training.config import parse_config
from imprompt.training.objectives import image_prompting
from slow_rows import mark_slow

KILLS = 12


@pytest.fixture(scope="module", autouse=True)
def short_looks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_prompting, "BANDS", (0.5,))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.write_base(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def settings(models: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_training.values(
        models, pictures, tmp_path_factory.mktemp("runs") / "whole", training__steps=8
    )


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any]) -> Path:
    training_processes.run_to_end(training_processes.train, settings)
    return Path(settings["output"])


def elsewhere(settings: dict[str, Any], output: Path) -> dict[str, Any]:
    return settings | {"output": str(output)}


def digest(run: Path) -> dict[str, str]:
    """SHA-256 of the finished adapter's file, and of everything that an exact continuation would need."""
    latest = Checkpoints(run / "checkpoints", 2).find_latest()
    assert latest is not None
    state = Checkpoints(run / "checkpoints", 2).load(latest)
    tensors = [*state.get("trained", []), *state.get("averaged", [])]
    moments = state["optimizer"]["state"]
    tensors += [moments[i][name] for i in sorted(moments) for name in ("step", "exp_avg", "exp_avg_sq")]
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.contiguous().numpy().tobytes())
    return {
        "adapter": hashlib.sha256((run / "adapter.safetensors").read_bytes()).hexdigest(),
        "state": f"{state['step']} {whole.hexdigest()}",
    }


@pytest.mark.slow
def test_twelve_kills_change_nothing(whole: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """Kill -9 at random moments and inside saves: the adapter ends the same to the bit."""
    rng = random.Random(0)
    seconds = training_processes.seconds_of(training_processes.train, elsewhere(settings, tmp_path / "timed"))
    kills, run, places = 0, 0, list(training_processes.WHERE)
    target = elsewhere(settings, tmp_path / "0")
    while kills < KILLS:
        if kills % 2:
            inside = (target, places[kills // 2 % len(places)], rng.randrange(3))
            process = training_processes.start_process(training_processes.train_until_killed, *inside)
            process.join()
            killed = process.exitcode != 0
        else:
            process = training_processes.start_process(training_processes.train, target)
            killed = training_processes.kill_after(process, rng.uniform(0.3 * seconds, seconds))
        kills += killed
        latest = Checkpoints(Path(target["output"]) / "checkpoints", 2).find_latest()
        assert latest is None or Checkpoints(latest.folder.parent, 2).load(latest)["step"] == latest.step
        if not killed:  # it came to its end: look at it, and begin another one
            assert digest(Path(target["output"])) == digest(whole)
            run += 1
            target = elsewhere(settings, tmp_path / str(run))
    training_processes.run_to_end(training_processes.train, target)
    assert digest(Path(target["output"])) == digest(whole)


@pytest.mark.parametrize("step", mark_slow((1, 3, 4), quick=(3,)))
def test_a_signal_saves_and_the_run_goes_on_exactly(
    whole: Path, settings: dict[str, Any], tmp_path: Path, step: int
) -> None:
    target = elsewhere(settings, tmp_path / "run")
    training_processes.run_to_end(training_processes.train_until_signal, target, step)
    latest = Checkpoints(tmp_path / "run" / "checkpoints", 2).find_latest()
    assert latest is not None
    assert latest.step == step
    assert "interrupted" in (tmp_path / "run" / "log.jsonl").read_text()
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    training_processes.run_to_end(training_processes.train, target)
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.slow
def test_without_an_average_the_adapters_file_holds_the_weights_once(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = settings | {"training": settings["training"] | {"ema_decay": 0.0}}
    whole, parts = (elsewhere(plain, tmp_path / name) for name in ("whole", "parts"))
    training_processes.run_to_end(training_processes.train, whole)
    short = parts | {"training": plain["training"] | {"steps": 4}}
    training_processes.run_to_end(training_processes.train, short)
    training_processes.run_to_end(training_processes.train, parts)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    latest = Checkpoints(tmp_path / "parts" / "checkpoints", 2).find_latest()
    assert latest is not None
    weights = sum(
        p.numel()
        for p in load_adapter(tmp_path / "parts" / "adapter.safetensors", image_encoder=None).parameters()
    )
    # Weights and two moments in float32, and nothing else of that size.
    assert sum(path.stat().st_size for path in latest.folder.iterdir()) < 3 * 4 * weights + 20_000


def test_a_full_disk_ends_the_run_and_loses_nothing(
    whole: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, saves = elsewhere(settings, tmp_path / "run"), iter(range(99))
    save = torch.save

    def filling(state: Any, path: Path) -> None:
        if next(saves) == 2:
            path.write_bytes(b"as much as there was room for")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, path)

    monkeypatch.setattr(torch, "save", filling)
    with pytest.raises(OutputError, match="000004 cannot be written: No space left on device"):
        train_adapter(parse_config(target, "test"))
    monkeypatch.undo()
    latest = Checkpoints(tmp_path / "run" / "checkpoints", 2).find_latest()
    assert latest is not None
    assert latest.step == 2
    load_adapter(latest.folder / "adapter.safetensors", image_encoder=None)
    training_processes.run_to_end(training_processes.train, target)
    assert digest(tmp_path / "run") == digest(whole)


@pytest.fixture(autouse=True)
def clean_folder(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
