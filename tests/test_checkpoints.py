"""Checkpoints appear whole or not at all; the last few stay, and the best one."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprompt.errors import OutputError, TrainingError
from imprompt.training import checkpoints as module
from imprompt.training.checkpoints import Checkpoints


def nothing(folder: Path) -> None:
    """Writes no other file."""


def save(one: Checkpoints, step: int, loss: float | None = None) -> None:
    figures = {} if loss is None else {"held-out loss": float(loss)}
    one.save(step, {"step": step, "weights": [torch.full((3,), float(step))]}, figures, nothing)


def steps(one: Checkpoints) -> list[int]:
    return [checkpoint.step for checkpoint in one.list_complete()]


@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.integers(0, 20) | st.none(), min_size=1, max_size=8), keep=st.integers(1, 3))
def test_the_last_ones_and_the_best_stay(
    tmp_path_factory: pytest.TempPathFactory, losses: list[int | None], keep: int
) -> None:
    one = Checkpoints(tmp_path_factory.mktemp("run"), keep)
    for step, loss in enumerate(losses):
        save(one, step, loss)
    last = list(range(len(losses)))[-keep:]
    judged = [(loss, step) for step, loss in enumerate(losses) if loss is not None]
    best = [min(judged)[1]] if judged else []
    assert steps(one) == sorted({*last, *best})
    assert one.find_latest() is not None


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    one = Checkpoints(tmp_path, 2)
    one.save(7, {"step": 7, "weights": [torch.arange(3.0)]}, {}, lambda folder: write(folder / "extra.txt"))
    latest = one.find_latest()
    assert latest is not None
    assert one.load(latest)["weights"][0].tolist() == [0, 1, 2]
    assert set(latest.files) == {"state.pt", "extra.txt"}


def write(path: Path) -> None:
    path.write_text("x")


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    one = Checkpoints(tmp_path, 2)
    for value in (1.0, 2.0):
        one.save(3, {"step": 3, "value": value}, {}, nothing)
    latest = one.find_latest()
    assert latest is not None
    assert one.load(latest)["value"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["000003"]


@pytest.mark.parametrize("place", ["torch.save", "seal", "flush", "write"])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    one = Checkpoints(tmp_path, 2)
    save(one, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    targets = {"torch.save": (torch, "save"), "seal": (module, "write_index"), "flush": (module, "flush")}
    if place in targets:
        monkeypatch.setattr(*targets[place], full)
    with pytest.raises(OutputError, match="000002 cannot be written: No space left on device"):
        one.save(2, {"step": 2}, {}, full if place == "write" else nothing)
    monkeypatch.undo()
    latest = one.find_latest()
    assert latest is not None
    assert one.load(latest)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


def test_what_a_killed_run_left_is_no_checkpoint_and_goes_away(tmp_path: Path) -> None:
    one = Checkpoints(tmp_path, 2)
    save(one, 1)
    (tmp_path / ".000002-abcd.part").mkdir()
    (tmp_path / ".000002-abcd.part" / "state.pt").write_bytes(b"half")
    (tmp_path / "000003").mkdir()  # renamed by nobody of ours: no index, no checkpoint
    assert steps(one) == [1]
    save(one, 4)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    one = Checkpoints(tmp_path, 2)
    save(one, 1)
    (tmp_path / "000001" / "state.pt").write_bytes(b"other")
    latest = one.find_latest()
    assert latest is not None
    with pytest.raises(TrainingError, match=r"000001/state.pt is missing or not as it was written"):
        one.load(latest)


def test_figures_that_are_not_finite_judge_nothing(tmp_path: Path) -> None:
    one = Checkpoints(tmp_path, 1)
    save(one, 1, float("nan"))
    assert json.loads((tmp_path / "000001" / "checkpoint.json").read_text())["figures"] == {}
    assert one.find_best() is None
