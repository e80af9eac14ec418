"""What trains, for a few steps: every variant, base and setting; what changes, and what must not."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
import tiny_bases
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import load_adapter
from imprompt.reference import Reference
from imprompt.training import optimizer_step
from imprompt.training.adapters import build_run
from imprompt.training.batches import make_fixed_batch
from imprompt.training.frozen_base import hash_weights
from imprompt.training.loop import Run
from imprompt.training.mechanisms import DecoupledMechanism
from imprompt.training.objectives import image_prompting
from short_runs import (
    BUCKETS,
    FACE,
    FEATURES,
    STEPS,
    build_base,
    config,
    pipeline,
    read_log,
    states,
    take,
    write_home,
)
from slow_rows import mark_slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


class Row(NamedTuple):
    """One way to train."""

    changes: Mapping[str, Any] = {}
    kind: str = "SD"
    data: str = "plain"
    schedule: Mapping[str, Any] = {}
    dtype: torch.dtype = torch.float32


V = {"prediction_type": "v_prediction"}
ROWS = {
    "base": Row(),
    "plus": Row({"adapter__variant": "plus"}),
    "full-face": Row({"adapter__variant": "full-face", "adapter__tokens": FEATURES}),
    "faceid": Row({"adapter__variant": "faceid", **FACE}),
    "faceid-plus": Row({"adapter__variant": "faceid-plus", **FACE}),
    "faceid-plusv2": Row({"adapter__variant": "faceid-plusv2", **FACE}),
    "SDXL, base, buckets": Row(BUCKETS, "SDXL"),
    "SDXL, plus, buckets": Row({"adapter__variant": "plus", **BUCKETS}, "SDXL"),
    "zero terminal SNR": Row(schedule={**V, "rescale_betas_zero_snr": True}),
    "min-SNR": Row({"loss__weighting": "min-snr"}),
    "noise offset": Row({"loss__noise_offset": 0.1}),
    "masks and references": Row(data="rich"),
    "fp16": Row({"training__precision": "fp16"}, dtype=torch.float16),
    "bf16, SDXL": Row({"training__precision": "bf16"}, "SDXL", dtype=torch.bfloat16),
    "captions, SDXL": Row({"cache__text": "captions"}, "SDXL"),
    "no cache, SDXL": Row({"cache__enabled": False, **BUCKETS}, "SDXL"),
    "checkpointing, LoRA": Row(
        {"training__gradient_checkpointing": True, "adapter__variant": "faceid", **FACE}
    ),
    "own prompts": Row({"watch__prompts": ["own", "a thing"]}),
}
QUICK = {
    "base",
    "faceid-plusv2",
    "SDXL, base, buckets",
    "masks and references",
    "fp16",
    "checkpointing, LoRA",
}
"""Rows that are trained whenever tests run; the others are slow tests."""


@pytest.fixture(autouse=True)
def one_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))


@pytest.mark.parametrize("name", mark_slow(ROWS, quick=QUICK))
def test_every_way_trains_what_it_should_and_nothing_else(home: Path, name: str) -> None:
    row = ROWS[name]
    base = build_base(row.kind, row.dtype, **row.schedule)
    run = build_run(config(home, name, row.data, **row.changes), base)
    before = hash_weights(*base.modules)
    assert run.train()
    assert hash_weights(*base.modules) == before
    assert all(p.grad is None and not p.requires_grad for module in base.modules for p in module.parameters())
    losses = read_log(run, "loss")
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert max(read_log(run, "skipped steps")) == 0
    first, *_, last = states(run)
    pairs = zip(run.optimizer.names, first["trained"], last["trained"], strict=True)
    assert [name for name, before, after in pairs if torch.equal(before, after)] == []
    assert_every_checkpoint_draws(run)
    if name in IN_DIFFUSERS:
        assert_diffusers_draws_the_same(run, row.kind)


IN_DIFFUSERS = "base", "plus", "faceid", "SDXL, base, buckets"


def assert_every_checkpoint_draws(run: Run) -> None:
    """The last one what the run itself draws; with none of them the same as with another."""
    objective: Any = run.objective
    reference = objective.embeddings(int(objective.samples.held_out[0]))
    with run.optimizer.use_averages():
        shown = np.asarray(objective.generate([reference], ["a thing"], 1.0)[0])
    objective.mechanism.attachment.detach()
    drawn = []
    for one in run.checkpoints.list_complete():
        adapter = load_adapter(one.folder / "adapter.safetensors", image_encoder=None)
        objective.mechanism = DecoupledMechanism(adapter, objective.base.pipe)
        drawn.append(np.asarray(objective.generate([reference], ["a thing"], 1.0)[0]))
        adapter.detach()
    assert len(drawn) == STEPS + 1
    assert np.array_equal(drawn[-1], shown)
    assert not np.array_equal(drawn[0], shown)


def assert_diffusers_draws_the_same(run: Run, kind: str) -> None:
    """From the finished file, for an image prompt and "no image" on the negative branch."""
    objective: Any = run.objective
    reference = objective.embeddings(int(objective.samples.held_out[0]))
    pipe, call = copy.deepcopy(pipeline(kind)), {"num_inference_steps": 2, "output_type": "np"}
    adapter = load_adapter(run.folder / "adapter.safetensors", image_encoder=None)
    with adapter.attach(pipe), adapter.references(Reference(reference)):
        ours = pipe(["a cat"], generator=torch.Generator().manual_seed(0), **call).images
    pipe.load_ip_adapter(
        str(run.folder), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    (positive,), (blank,) = reference.inputs.values(), reference.blank.values()
    embeds = torch.stack([blank.expand_as(positive), positive])
    theirs = pipe(
        ["a cat"], generator=torch.Generator().manual_seed(0), ip_adapter_image_embeds=[embeds], **call
    ).images
    assert np.abs(ours - theirs).max() <= 1e-5


def test_the_first_step_of_a_lora_changes_what_begins_as_zero(home: Path) -> None:
    run = build_run(config(home, "lora", adapter__variant="faceid", **FACE), build_base())
    before = [weight.detach().clone() for weight in run.optimizer.trained]
    take(run, 1)
    same = {
        name
        for name, a, b in zip(run.optimizer.names, before, run.optimizer.trained, strict=True)
        if torch.equal(a, b)
    }
    assert same == {name for name in run.optimizer.names if name.endswith("down.weight")}
    assert same


def train_weights(home: Path, name: str, **changes: Any) -> list[Tensor]:
    """The weights after some steps on the base that needs sizes, pictures of several shapes."""
    run = build_run(config(home, name, **changes), build_base("SDXL"))
    take(run, STEPS)
    return [weight.detach() for weight in run.optimizer.trained]


def gradients(home: Path, name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Tensor]:
    """Of the first step, before clipping."""
    run, noted = build_run(config(home, name, **changes), build_base()), []
    monkeypatch.setattr(
        optimizer_step, "sum_over_processes", lambda parts: noted.extend(part.clone() for part in parts)
    )
    take(run, 1)
    return noted


@pytest.mark.parametrize(
    "changes", [{"cache__enabled": False}, {"training__loader_workers": 2}], ids=["no cache", "two workers"]
)
def test_the_same_bits_however_samples_are_read(home: Path, changes: Mapping[str, Any]) -> None:
    plain = train_weights(home, "plain", **BUCKETS)
    assert all(map(torch.equal, plain, train_weights(home, "otherwise", **BUCKETS, **changes)))


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("base", {"training__passes": 2}),
        ("base", {"cache__text": "captions"}),
        ("faceid", {"training__gradient_checkpointing": True}),
        ("faceid", {"training__passes": 4, "training__gradient_checkpointing": True}),
    ],
)
def test_the_same_gradients_however_they_are_computed(
    home: Path, variant: str, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: dict[str, Any] = {"adapter__variant": variant, **(FACE if variant == "faceid" else {})}
    plain = gradients(home, "plainly", monkeypatch, **kind)
    other = gradients(home, "otherwise", monkeypatch, **kind, **changes)
    assert sum(float(one.abs().sum()) for one in plain) > 0
    worst = max(float((a - b).abs().max()) for a, b in zip(plain, other, strict=True))
    assert worst <= 1e-6


# What is dropped


@pytest.mark.parametrize("variant", ["base", "plus", "faceid-plusv2"])
def test_a_dropped_image_is_what_inference_takes_for_no_image(home: Path, variant: str) -> None:
    base = build_base()
    run = build_run(config(home, f"dropped-{variant}", adapter__variant=variant), base)
    objective: Any = run.objective
    batch = make_fixed_batch(objective.samples, objective.samples.train[:3])
    dropped = objective.inputs_of(batch, torch.tensor([True, False, True]))
    adapter: ImagePromptAdapter = objective.mechanism.trained
    adapter.image_encoder = base.image_encoder
    face = tiny_bases.numbers(1, 512) if variant.startswith("faceid") else None
    blank = adapter.encode(Reference(tiny.picture(), face=face)).blank
    assert set(blank) == set(dropped) == set(objective.blanks)
    for name, value in dropped.items():
        assert torch.equal(value[0, 0], blank[name])
        assert torch.equal(value[1], batch.inputs[name][1])
        assert torch.equal(value[2, 0], blank[name])


def test_conditions_are_dropped_as_often_as_asked(home: Path) -> None:
    shares: dict[str, Any] = {"loss__image_drop": 0.2, "loss__text_drop": 0.1, "loss__both_drop": 0.3}
    run = build_run(config(home, "shares", training__batch_size=400, **shares), build_base())
    (batch,) = next(iter(run.feed(range(1))))
    no_image, no_text = batch.draws.no_image, batch.draws.no_text
    counts = (no_image & ~no_text, no_text & ~no_image, no_image & no_text)
    for found, wanted in zip(counts, (0.2, 0.1, 0.3), strict=True):
        assert abs(float(found.float().mean()) - wanted) < 0.07  # three deviations


def test_with_every_image_dropped_no_image_matters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything: dict[str, Any] = {"loss__image_drop": 1.0, "loss__text_drop": 0.0, "loss__both_drop": 0.0}
    run = build_run(config(home, "everything", **everything), build_base())
    (batch,) = next(iter(run.feed(range(1))))
    other = batch._replace(inputs={name: value + 1 for name, value in batch.inputs.items()})
    with torch.no_grad():
        assert torch.equal(run.objective.loss(batch)["loss"], run.objective.loss(other)["loss"])


# Data


def test_where_a_mask_is_black_the_target_may_be_anything(home: Path) -> None:
    run = build_run(config(home, "masks", "rich", training__batch_size=8), build_base())
    (batch,) = next(iter(run.feed(range(1))))
    assert batch.mask is not None
    masked = (batch.mask.amin(dim=(1, 2, 3)) == 0).nonzero().flatten()
    assert 0 < len(masked) < 8  # half of the pictures have one
    objective: Any = run.objective
    shape = batch.draws.noise.shape
    predicted = tiny_bases.numbers(*shape)
    spoiled = predicted + 9 * (batch.mask == 0)
    text, times = objective.text_of(batch, torch.zeros(8, dtype=torch.bool)), torch.full((8,), 500)

    def errors(prediction: Tensor) -> Tensor:
        return objective.mean_errors(lambda *_: prediction, batch, text, times)

    assert torch.equal(errors(predicted), errors(spoiled))
    assert not torch.equal(errors(predicted), errors(predicted + 9))


def test_each_of_several_references_is_taken_and_never_the_target(home: Path) -> None:
    run = build_run(config(home, "references", "rich"), build_base())
    objective: Any = run.objective
    taken = set()
    for step in range(8):
        (batch,) = next(iter(run.feed(range(step, step + 1))))
        for caption, one in zip(batch.captions, batch.inputs["image_embedding"], strict=True):
            row = next(r for r in objective.samples.train if objective.samples.caption(int(r)) == caption)
            offered = objective.samples.row(int(row))["image_embedding"]
            assert len(offered) == 2
            matches = [index for index, value in enumerate(offered) if torch.equal(value, one[0])]
            assert len(matches) == 1
            taken.add((caption, *matches))
    assert {which for _, which in taken} == {0, 1}


def test_held_out_pictures_of_shapes_of_their_own_have_a_shuffled_gap_too(home: Path) -> None:
    run = build_run(config(home, "alone", **BUCKETS), build_base())
    objective: Any = run.objective
    rows = [next(iter(rows)) for rows in objective.samples.buckets.values()]
    assert len(rows) > 1
    objective.samples.held_out = np.array(rows)
    figures = objective.measure_held_out()
    assert np.isfinite(list(figures.values())).all()
    assert figures["gap to shuffled"] != 0
