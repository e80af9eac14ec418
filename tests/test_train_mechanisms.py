"""Mechanisms to be compared with, trained for a few steps: what changes, what must not, and going on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imprompt.checkpoint.files import read_tensors
from imprompt.errors import ConfigError
from imprompt.training.adapters import build_run, check_folder, list_frozen_modules, write_config
from imprompt.training.frozen_base import hash_weights
from imprompt.training.loop import Run
from imprompt.training.mechanisms import MECHANISMS, load_mechanism, read_metadata
from imprompt.training.objectives import image_prompting
from short_runs import STEPS, build_base, config, read_log, states, take, write_home
from slow_rows import mark_slow

WAYS: dict[str, dict[str, Any]] = {
    **{name: {"adapter__mechanism": name} for name in MECHANISMS if name != "decoupled"},
    "concatenated": {"adapter__mechanism": "concatenated", "adapter__hidden": 5},
}


ENOUGH = {"shuffled-control": 4}
"""Steps after which every weight has changed: zero layers behind zero layers learn one after the other."""

QUICK = ("concatenated", "replaced")
"""A mechanism that leaves the base as it is, and one that trains it: the others are slow tests."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


@pytest.fixture(autouse=True)
def one_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))


def run_of(home: Path, way: str, folder: str, **more: Any) -> tuple[Run, Any]:
    """A run at its beginning, and its base."""
    base = build_base()
    return build_run(config(home, f"{way}-{folder}", **WAYS[way], **more), base), base


@pytest.mark.parametrize("way", mark_slow(WAYS, quick=QUICK))
def test_a_mechanism_trains_and_goes_on_bit_for_bit(home: Path, way: str) -> None:
    """Stopped after a step and taken up by another process' objects, on a base that was not touched."""
    count = ENOUGH.get(way, STEPS)
    whole, base = run_of(home, way, "whole", training__steps=count)
    settings: Any = whole.objective.config  # pyright: ignore[reportAttributeAccessIssue]
    before = hash_weights(*list_frozen_modules(settings, base)), hash_weights(base.unet)
    assert whole.train()
    assert np.isfinite(read_log(whole, "loss")).all()
    assert hash_weights(*list_frozen_modules(settings, base)) == before[0]
    assert (hash_weights(base.unet) != before[1]) == settings.trains_base
    first, *_, last = states(whole)
    pairs = zip(whole.optimizer.names, first["trained"], last["trained"], strict=True)
    assert [name for name, a, b in pairs if torch.equal(a, b)] == []
    for steps in (1, count):
        part, _ = run_of(home, way, "parts", training__steps=steps, training__warmup_steps=0)
        assert part.resume() == (steps > 1)
        assert part.train()
    path = whole.folder / "adapter.safetensors"
    assert (part.folder / "adapter.safetensors").read_bytes() == path.read_bytes()
    said = read_metadata(path)
    assert (said["injection"], said["steps"], said["seed"]) == (way, str(count), "0")
    assert_it_draws_what_the_run_draws(whole)


def assert_it_draws_what_the_run_draws(run: Run) -> None:
    """The finished file on an untouched base; its averaged weights."""
    objective: Any = run.objective
    reference = objective.embeddings(int(objective.samples.held_out[0]))
    with run.optimizer.use_averages():
        shown = np.asarray(objective.generate([reference], ["a thing"], 1.0)[0])
    objective.base = build_base()
    objective.mechanism = load_mechanism(run.folder / "adapter.safetensors", objective.base.pipe)
    assert np.array_equal(np.asarray(objective.generate([reference], ["a thing"], 1.0)[0]), shown)


@pytest.mark.slow
def test_without_an_average_the_file_holds_the_weights_and_the_run_goes_on(home: Path) -> None:
    whole, _ = run_of(home, "unclip", "plain", training__ema_decay=0.0)
    assert whole.train()
    assert "trained" not in states(whole)[-1]
    for steps in (1, STEPS):
        part, _ = run_of(home, "unclip", "plain-parts", training__ema_decay=0.0, training__steps=steps)
        part.resume()
        assert part.train()
    names = [run.folder / "adapter.safetensors" for run in (whole, part)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_the_base_learns_at_a_rate_of_its_own(home: Path) -> None:
    run, _ = run_of(home, "unclip", "rates", training__base_learning_rate=3e-4)
    groups = {group["name"]: group["lr"] for group in run.objective.parameter_groups()}
    assert groups == {"projection": 1e-2, "base": 3e-4}
    run, _ = run_of(home, "unclip", "default-rates")
    assert {group["name"]: group["lr"] for group in run.objective.parameter_groups()}["base"] == 1e-3


def test_the_first_loss_of_unclip_is_the_bases_with_any_image(home: Path) -> None:
    run, _ = run_of(home, "unclip", "first")
    (batch,) = next(iter(run.feed(range(1))))
    other = batch._replace(inputs={name: value + 1 for name, value in batch.inputs.items()})
    with torch.no_grad():
        assert torch.equal(run.objective.loss(batch)["loss"], run.objective.loss(other)["loss"])
    take(run, 1)
    with torch.no_grad():
        assert not torch.equal(run.objective.loss(batch)["loss"], run.objective.loss(other)["loss"])


def test_a_checkpoint_says_at_which_step_it_was_made(home: Path) -> None:
    run, _ = run_of(home, "concatenated", "steps")
    assert run.train()
    said = [
        read_tensors(one.folder / "adapter.safetensors").metadata for one in run.checkpoints.list_complete()
    ]
    assert [one["steps"] for one in said] == [str(step) for step in range(STEPS + 1)]


def test_a_run_goes_on_as_the_mechanism_that_it_began_as(home: Path) -> None:
    run, _ = run_of(home, "replaced", "changed")
    settings: Any = run.objective.config  # pyright: ignore[reportAttributeAccessIssue]
    write_config(settings, run.folder)
    run.save()
    changed = config(home, "replaced-changed", adapter__mechanism="two-stream")
    with pytest.raises(ConfigError, match=r"adapter was .* when the run in"):
        check_folder(changed, resume=True)
    check_folder(settings, resume=True)
