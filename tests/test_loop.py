"""The loop, on a model of one weight: when it looks, saves, skips, goes back and stops."""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imprompt.errors import TrainingError
from imprompt.training.loop import Run
from imprompt.training.objectives.objective import Objective
from imprompt.training.settings import LoopSettings


class OneWeight(Objective):
    """Pulls a weight towards 1; spoils the gradient at some steps."""

    def __init__(self, spoilt: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.spoilt, self.looks, self.exported = spoilt, 0, 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "lr": 0.1}]

    def loss(self, batch: int) -> dict[str, Tensor]:
        loss = (self.weight - 1).square().sum()
        return {"loss": loss * math.nan if batch in self.spoilt else loss}

    def measure_held_out(self) -> dict[str, float]:
        self.looks += 1
        return {"held-out loss": float((self.weight - 0.25).square().sum())}

    def draw_samples(self) -> Image.Image:
        return Image.new("RGB", (4, 4), "teal")

    def save(self, folder: Path) -> None:
        (folder / "weight.json").write_text(json.dumps(self.weight.tolist()))

    def export(self, output: Path) -> None:
        self.exported += 1


def run(folder: Path, objective: OneWeight, **changes: Any) -> Run:
    asked: dict[str, Any] = {
        "steps": 10,
        "batch_size": 1,
        "warmup_steps": 0,
        "log_every": 1,
        "save_every": 2,
        "sample_every": 5,
        "ema_decay": 0.0,
    }

    def feed(steps: range) -> Iterator[list[int]]:
        return ([step] for step in steps)

    return Run(LoopSettings(**asked | changes), objective, feed, folder, config={})


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["event"]) for line in log(folder) if "event" in line]


def test_a_run_looks_at_its_start_on_its_way_and_at_its_end(tmp_path: Path) -> None:
    objective = OneWeight()
    assert run(tmp_path, objective).train()
    assert [path.stem for path in sorted((tmp_path / "samples").iterdir())] == ["000000", "000005", "000010"]
    assert [line["step"] for line in log(tmp_path) if "held-out loss" in line] == [0, 5, 10]
    assert [line["step"] for line in log(tmp_path) if "loss" in line] == list(range(1, 11))
    assert events(tmp_path) == [(0, "started"), (10, "finished")]
    assert objective.exported == 1


def test_a_grid_that_cannot_be_drawn_is_no_reason_to_lose_a_run(tmp_path: Path) -> None:
    class Undrawn(OneWeight):
        def draw_samples(self) -> Image.Image:
            raise RuntimeError("CUDA out of memory\nand so on")

    assert run(tmp_path, Undrawn()).train()
    assert (5, "no sample grid: CUDA out of memory") in events(tmp_path)


def test_a_rate_that_is_never_reached_is_said(tmp_path: Path) -> None:
    run(tmp_path, OneWeight(), warmup_steps=100, cooldown_steps=5).train()
    told = "the learning rate reaches only 10% of training.learning_rate: 100 steps of warm-up"
    assert any(event.startswith(told) for _, event in events(tmp_path))


def test_whoever_asks_is_told_of_every_sample_grid(tmp_path: Path) -> None:
    seen: list[int] = []
    one = run(tmp_path, OneWeight())
    one.on_samples = lambda folder: seen.append(len(list((folder / "samples").iterdir())))
    one.train()
    assert seen == [1, 2, 3]


def test_the_last_checkpoints_stay_and_the_best_by_what_is_held_out(tmp_path: Path) -> None:
    run(tmp_path, OneWeight(), steps=12, save_every=1, sample_every=1).train()
    kept = [int(path.name) for path in sorted((tmp_path / "checkpoints").iterdir())]
    held_out = {line["step"]: line["held-out loss"] for line in log(tmp_path) if "held-out loss" in line}
    best = min(held_out, key=lambda step: held_out[step])
    assert 0 < best < 10
    assert kept == [best, 11, 12]


def test_steps_that_are_not_finite_are_skipped_counted_and_named(tmp_path: Path) -> None:
    objective = OneWeight((3, 6))
    assert run(tmp_path, objective).train()
    assert log(tmp_path)[-2]["step"] == 10
    assert [line["skipped steps"] for line in log(tmp_path) if "loss" in line][-1] == 2
    named = "steps were skipped: the gradient of weight was not finite"
    assert [step for step, event in events(tmp_path) if event == named] == [4, 7]
    assert objective.weight.isfinite().all()


def test_three_in_a_row_go_back_to_the_last_checkpoint_and_the_data_goes_on(tmp_path: Path) -> None:
    objective = OneWeight((5, 6, 7))
    assert run(tmp_path, objective).train()
    went = "3 steps in a row were not finite: back to the weights of step 6"
    assert (8, went) in events(tmp_path)
    twin = OneWeight((5, 6, 7))
    whole = run(tmp_path / "twin", twin, save_every=100)
    whole.checkpoints.save = lambda *_, **__: None  # type: ignore[method-assign]
    # Without a checkpoint there is nothing to go back to.
    with pytest.raises(TrainingError, match="not finite any more, at weight first"):
        whole.train()


def test_a_run_that_stays_sick_ends_with_advice(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower training\.learning_rate"):
        run(tmp_path, OneWeight(tuple(range(3, 10)))).train()
    kept = sorted((tmp_path / "checkpoints").glob("*/weight.json"))
    assert kept  # and it is as it was before the sickness
    assert torch.tensor(json.loads(kept[-1].read_text())).isfinite().all()


def deliver(number: int) -> None:
    """Call the handler of a signal, as Python does when the signal has come.

    A real signal to this process has crashed it (SIGSEGV) late in a run of all tests, before a handler ran.
    test_train_interrupted.py sends real ones, to processes of their own.
    """
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path: Path, which: int) -> None:
    class Asked(OneWeight):
        def loss(self, batch: int) -> dict[str, Tensor]:
            if batch == 2:
                deliver(which)
            return super().loss(batch)

    objective = Asked()
    assert not run(tmp_path, objective).train()
    assert (tmp_path / "checkpoints" / "000003").is_dir()
    assert events(tmp_path)[-1] == (3, "interrupted; --resume latest goes on from here")
    assert objective.exported == 0
    assert signal.getsignal(which) is not None
    again = run(tmp_path, OneWeight())
    assert again.resume()
    assert again.train()
    assert (3, "resumed at step 3") in events(tmp_path)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    class Impatient(OneWeight):
        def loss(self, batch: int) -> dict[str, Tensor]:
            for _ in range(2 * (batch == 2)):
                deliver(signal.SIGINT)
            return super().loss(batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Impatient()).train()


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, OneWeight(), steps=2).train()
    other = OneWeight()
    other.weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(TrainingError, match="are of another model"):
        run(tmp_path, other).resume()
    with pytest.raises(TrainingError, match=r"has taken 2 steps already; training\.steps is 1"):
        run(tmp_path, OneWeight(), steps=1).resume()
