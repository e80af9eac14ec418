"""What trains, for a few steps: every variant, base and setting; what changes, and what must not."""

import copy
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

import tiny
import tiny_bases
import tiny_training
import toy_pictures
from imprompt import mini
from imprompt.adapter import ImagePromptAdapter
from imprompt.checkpoint import load_adapter, save_adapter
from imprompt.encoder import ImageEncoder
from imprompt.errors import AdapterMismatch, CheckpointError, ConfigError
from imprompt.reference import Reference
from imprompt.training import descent, exporting
from imprompt.training.adapters import adapter_run
from imprompt.training.batches import fixed_batch
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import FrozenBase, weights_fingerprint
from imprompt.training.injection import DecoupledInjection
from imprompt.training.loop import Run
from imprompt.training.objectives import image_prompting
from test_watching import StandIn

CONTEXT = 64
"""Width of the text, and so of perceivers, whose heads diffusers takes to be 64 wide."""

# The first step of a LoRA changes its up-matrices only, which begin as zero: till then down has no gradient.
STEPS, FEATURES = 2, 5
SHAPES = ((37, 31), (31, 37), (40, 24), (24, 40), (36, 36))


@functools.cache
def pipeline(kind: str) -> Any:
    """A tiny base whose text is `CONTEXT` wide."""
    pipe: Any = tiny.sd_pipeline() if kind == "SD" else tiny.xl_pipeline()
    unet = tiny_bases.unet_of(dict(pipe.unet.config) | {"cross_attention_dim": CONTEXT})
    width = CONTEXT if kind == "SD" else CONTEXT - tiny.XL_CONTEXT_2
    pipe.register_modules(unet=unet, text_encoder=tiny.text_model(seed=1, width=width))
    return pipe


def frozen(kind: str = "SD", dtype: torch.dtype = torch.float32, **schedule: Any) -> FrozenBase:
    """A base of one's own; `schedule` changes its scheduler."""
    pipe = copy.deepcopy(pipeline(kind))
    if schedule:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **schedule)
    return FrozenBase(pipe, ImageEncoder(tiny.vision_model(seed=3)), dtype=dtype)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data, cache and runs are."""
    folder = tmp_path_factory.mktemp("training")
    write_pictures(folder / "plain")
    for index, place in enumerate(write_pictures(folder / "rich")):
        tiny.picture(seed=100 + index).save(place.with_suffix(".reference.1.png"))
        tiny.picture(seed=200 + index).save(place.with_suffix(".reference.2.png"))
        if index % 2:
            with Image.open(place) as picture:
                half = Image.new("L", picture.size, 0)
            half.paste(255, (0, 0, half.width // 2, half.height))
            half.save(place.with_suffix(".mask.png"))
    return folder


def write_pictures(folder: Path, count: int = 10) -> list[Path]:
    """Pictures of several shapes with captions and faces."""
    folder.mkdir(parents=True)
    places = [folder / f"{number:03d}.png" for number in range(count)]
    for number, place in enumerate(places):
        width, height = SHAPES[number % len(SHAPES)]
        tiny.picture(seed=number, width=width, height=height).save(place)
        place.with_suffix(".txt").write_text(f"thing {number}")
        face = tiny_bases.numbers(512, seed=number)
        np.save(place.with_suffix(".face.npy"), (face / face.norm()).numpy())
    return places


def config(home: Path, name: str, data: str = "plain", **changes: Any) -> TrainingConfig:
    """A run of few steps, each saved."""
    least = {
        "adapter__tokens": 4,  # diffusers takes a linear projection to make four
        "data__held_out": 0.2,
        "cache__precision": "fp32",
        "cache__folder": str(home / "cache"),
        "training__steps": STEPS,
        "training__save_every": 1,
        "training__keep": 9,
        "training__weight_decay": 0.0,
    }
    return tiny_training.config(home, home / data, home / "runs" / name, **{**least, **changes})


class Row(NamedTuple):
    """One way to train."""

    changes: Mapping[str, Any] = {}
    kind: str = "SD"
    data: str = "plain"
    schedule: Mapping[str, Any] = {}
    dtype: torch.dtype = torch.float32


FACE: dict[str, Any] = {"adapter__lora_rank": 3}
BUCKETS = {"data__buckets": True, "data__size": 32, "data__bucket_step": 8, "training__batch_size": 2}
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


def states(run: Run) -> list[dict[str, Any]]:
    return [run.checkpoints.load(one) for one in run.checkpoints.every()]


def logged(run: Run, name: str) -> list[float]:
    lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.fixture(autouse=True)
def one_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))


@pytest.mark.parametrize("name", ROWS)
def test_every_way_trains_what_it_should_and_nothing_else(home: Path, name: str) -> None:
    row = ROWS[name]
    base = frozen(row.kind, row.dtype, **row.schedule)
    run = adapter_run(config(home, name, row.data, **row.changes), base)
    before = weights_fingerprint(*base.modules)
    assert run.go()
    assert weights_fingerprint(*base.modules) == before
    assert all(p.grad is None and not p.requires_grad for module in base.modules for p in module.parameters())
    losses = logged(run, "loss")
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert max(logged(run, "skipped steps")) == 0
    first, *_, last = states(run)
    pairs = zip(run.descent.names, first["trained"], last["trained"], strict=True)
    assert [name for name, before, after in pairs if torch.equal(before, after)] == []
    assert_every_checkpoint_draws(run)
    if name in IN_DIFFUSERS:
        assert_diffusers_draws_the_same(run, row.kind)


IN_DIFFUSERS = "base", "plus", "faceid", "SDXL, base, buckets"


def assert_every_checkpoint_draws(run: Run) -> None:
    """The last one what the run itself draws; with none of them the same as with another."""
    objective: Any = run.objective
    reference = objective.embeddings(int(objective.samples.held_out[0]))
    with run.descent.averages_in_place():
        shown = np.asarray(objective.drawn([reference], ["a thing"], 1.0)[0])
    objective.injection.attachment.detach()
    drawn = []
    for one in run.checkpoints.every():
        adapter = load_adapter(one.folder / "adapter.safetensors", image_encoder=None)
        objective.injection = DecoupledInjection(adapter, objective.base.pipe)
        drawn.append(np.asarray(objective.drawn([reference], ["a thing"], 1.0)[0]))
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
    run = adapter_run(config(home, "lora", adapter__variant="faceid", **FACE), frozen())
    before = [weight.detach().clone() for weight in run.descent.trained]
    take(run, 1)
    same = {
        name
        for name, a, b in zip(run.descent.names, before, run.descent.trained, strict=True)
        if torch.equal(a, b)
    }
    assert same == {name for name in run.descent.names if name.endswith("down.weight")}
    assert same


def take(run: Run, steps: int) -> list[float]:
    """Steps without looks and saves; their losses."""
    return [float(run.train_step(passes)["loss"]) for passes in run.feed(range(steps))]


def trained(home: Path, name: str, **changes: Any) -> list[Tensor]:
    """The weights after some steps on the base that needs sizes, pictures of several shapes."""
    run = adapter_run(config(home, name, **changes), frozen("SDXL"))
    take(run, STEPS)
    return [weight.detach() for weight in run.descent.trained]


def gradients(home: Path, name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Tensor]:
    """Of the first step, before clipping."""
    run, noted = adapter_run(config(home, name, **changes), frozen()), []
    monkeypatch.setattr(descent, "shared", lambda parts: noted.extend(part.clone() for part in parts))
    take(run, 1)
    return noted


@pytest.mark.parametrize(
    "changes", [{"cache__enabled": False}, {"training__loader_workers": 2}], ids=["no cache", "two workers"]
)
def test_the_same_bits_however_samples_are_read(home: Path, changes: Mapping[str, Any]) -> None:
    plain = trained(home, "plain", **BUCKETS)
    assert all(map(torch.equal, plain, trained(home, "otherwise", **BUCKETS, **changes)))


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
    base = frozen()
    run = adapter_run(config(home, f"dropped-{variant}", adapter__variant=variant), base)
    objective: Any = run.objective
    batch = fixed_batch(objective.samples, objective.samples.train[:3])
    dropped = objective.inputs_of(batch, torch.tensor([True, False, True]))
    adapter: ImagePromptAdapter = objective.injection.trained
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
    run = adapter_run(config(home, "shares", training__batch_size=400, **shares), frozen())
    (batch,) = next(iter(run.feed(range(1))))
    no_image, no_text = batch.draws.no_image, batch.draws.no_text
    counts = (no_image & ~no_text, no_text & ~no_image, no_image & no_text)
    for found, wanted in zip(counts, (0.2, 0.1, 0.3), strict=True):
        assert abs(float(found.float().mean()) - wanted) < 0.07  # three deviations


def test_with_every_image_dropped_no_image_matters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything: dict[str, Any] = {"loss__image_drop": 1.0, "loss__text_drop": 0.0, "loss__both_drop": 0.0}
    run = adapter_run(config(home, "everything", **everything), frozen())
    (batch,) = next(iter(run.feed(range(1))))
    other = batch._replace(inputs={name: value + 1 for name, value in batch.inputs.items()})
    with torch.no_grad():
        assert torch.equal(run.objective.loss(batch)["loss"], run.objective.loss(other)["loss"])


# Data


def test_where_a_mask_is_black_the_target_may_be_anything(home: Path) -> None:
    run = adapter_run(config(home, "masks", "rich", training__batch_size=8), frozen())
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
        return objective.errors(lambda *_: prediction, batch, text, times)

    assert torch.equal(errors(predicted), errors(spoiled))
    assert not torch.equal(errors(predicted), errors(predicted + 9))


def test_each_of_several_references_is_taken_and_never_the_target(home: Path) -> None:
    run = adapter_run(config(home, "references", "rich"), frozen())
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
    run = adapter_run(config(home, "alone", **BUCKETS), frozen())
    objective: Any = run.objective
    rows = [next(iter(rows)) for rows in objective.samples.buckets.values()]
    assert len(rows) > 1
    objective.samples.held_out = np.array(rows)
    figures = objective.held_out()
    assert np.isfinite(list(figures.values())).all()
    assert figures["gap to shuffled"] != 0


SOURCES: dict[exporting.Layout, str] = {"folder": "", "official": "data.json", "webdataset": "*.tar"}


def test_three_layouts_give_the_same_features_and_the_same_first_fifty_losses(tmp_path: Path) -> None:
    toy, seen = toy_pictures.write_toy_data(tmp_path / "toy", size=16), []
    for layout, inner in SOURCES.items():
        output = tmp_path / layout / "pictures"
        exporting.export_pictures(toy, output, layout=layout, variants=1, seed=0)
        changes = {
            "data__source": str(output / inner),
            "cache__folder": str(tmp_path / layout / "cache"),
            "training__batch_size": 2,
        }
        run = adapter_run(config(tmp_path, f"{layout}-run", **changes), frozen())
        samples: Any = run.objective.samples  # pyright: ignore[reportAttributeAccessIssue]
        seen.append(([samples.row(row) for row in range(len(samples))], take(run, 50)))
    (rows, losses), *others = seen
    assert len(losses) == len(set(losses)) == 50
    for other_rows, other_losses in others:
        assert other_losses == losses
        assert len(other_rows) == len(rows)
        for one, other in zip(rows, other_rows, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


# Other ways in


def test_the_simple_adapter_trains_its_projection_alone(home: Path) -> None:
    base = frozen()
    run = adapter_run(config(home, "simple", adapter__injection="concatenated"), base)
    before = weights_fingerprint(base.unet)
    assert run.go()
    assert weights_fingerprint(base.unet) == before
    assert {name.removeprefix("trained.").split(".")[0] for name in run.descent.names} == {"proj", "norm"}
    first, *_, last = states(run)
    assert not any(map(torch.equal, first["trained"], last["trained"]))
    with pytest.raises(CheckpointError):
        load_adapter(run.folder / "adapter.safetensors", image_encoder=None)


def test_a_flow_matching_base_trains(home: Path) -> None:
    """diffusers has no pipeline that samples a U-Net with such a scheduler."""
    base = frozen()
    base.scheduler = base.pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    run = adapter_run(config(home, "flow"), base)
    assert run.objective.metadata()["prediction"] == "flow"  # pyright: ignore[reportCallIssue]
    before = [weight.detach().clone() for weight in run.descent.trained]
    assert np.isfinite(take(run, STEPS)).all()
    assert not any(map(torch.equal, before, run.descent.trained))
    assert np.isfinite(list(run.objective.held_out().values())).all()


# Going on from an adapter


@pytest.fixture(scope="module")
def files(home: Path) -> Callable[..., Path]:
    """A new adapter of some kind, written to a file."""

    def written(name: str, kind: str = "SD", suffix: str = ".safetensors", **changes: Any) -> Path:
        run = adapter_run(config(home, f"start-{name}", **changes), frozen(kind))
        adapter: ImagePromptAdapter = run.objective.injection.trained  # pyright: ignore
        for weight in adapter.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        path = home / f"{name}{suffix}"
        save_adapter(adapter, path)
        return path

    return written


def test_fine_tuning_begins_with_the_files_weights_and_changes_them_all(
    home: Path, files: Callable[..., Path]
) -> None:
    path = files("faced", adapter__variant="faceid", **FACE)
    start = {"adapter__variant": "faceid", "adapter__start": str(path)}
    run = adapter_run(config(home, "tuned", **start), frozen())
    adapter: ImagePromptAdapter = run.objective.injection.trained  # pyright: ignore
    given = load_adapter(path, image_encoder=None).state_dict()
    assert all(torch.equal(value, given[name]) for name, value in adapter.state_dict().items())
    assert run.go()
    assert not any(torch.equal(value, given[name]) for name, value in adapter.state_dict().items())


@pytest.mark.parametrize(("variant", "other"), [("faceid-plus", 2), ("faceid-plusv2", 1)])
def test_the_variant_says_which_version_of_faceid_plus_a_file_is(
    home: Path, files: Callable[..., Path], variant: str, other: int
) -> None:
    """A published .bin file does not say it itself; what says otherwise is refused."""
    start = files(variant, suffix=".bin", adapter__variant=variant)
    changes = {"adapter__variant": variant, "adapter__start": str(start)}
    adapter: Any = adapter_run(config(home, f"{variant}-on", **changes), frozen()).objective
    assert adapter.injection.trained.projection.version == 3 - other
    contrary = files(f"not-{variant}", adapter__variant=f"faceid-plus{'v2' if other == 2 else ''}")
    with pytest.raises(CheckpointError, match=f"is FaceID-Plus version {other}, not {3 - other}"):
        adapter_run(config(home, f"{variant}-no", **changes | {"adapter__start": str(contrary)}), frozen())


def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_cached(
    home: Path, files: Callable[..., Path], tmp_path: Path
) -> None:
    plain, plus, wide = files("plain"), files("plus", adapter__variant="plus"), tmp_path / "wide.safetensors"
    save_adapter(tiny.adapter(tiny.xl_unet()), wide)
    nowhere = {"cache__folder": str(tmp_path / "cache")}

    def begin(path: Path, **changes: Any) -> None:
        adapter_run(config(home, "unfit", **nowhere, adapter__start=str(path), **changes), frozen())

    with pytest.raises(ConfigError, match=r"takes image_features and makes 4 tokens; the variant"):
        begin(plus)
    with pytest.raises(ConfigError, match=r"makes 4 tokens; .* adapter\.tokens is 3"):
        begin(plain, adapter__tokens=3)
    with pytest.raises(AdapterMismatch):
        begin(wide)
    other = frozen()
    other.image_encoder = ImageEncoder(mini_encoder())
    with pytest.raises(ConfigError, match=r"takes image_embedding 14 wide; that of base\.image_encoder"):
        adapter_run(config(home, "unfit", **nowhere, adapter__start=str(plain)), other)
    assert not (tmp_path / "cache").exists()


def mini_encoder() -> Any:
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection.from_pretrained(mini.WEIGHTS / "image_encoder")


# Watching


def test_a_grid_has_a_row_for_every_prompt_at_every_scale_and_the_log_goes_to_weights_and_biases(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", told := StandIn())
    drawn: list[tuple[Sequence[str], float]] = []
    pictures = DecoupledInjection.pictures

    def noted(self: Any, pipe: Any, images: Any, scale: float, call: Mapping[str, Any]) -> Any:
        drawn.append((call["prompt"], scale))
        return pictures(self, pipe, images, scale, call)

    monkeypatch.setattr(DecoupledInjection, "pictures", noted)
    asked = {
        "watch__references": 2,
        "watch__prompts": ["", "own"],
        "watch__scales": [0.0, 0.5],
        "watch__wandb": "adapters",
    }
    run = adapter_run(config(home, "watched", training__steps=1, **asked), frozen())
    assert run.go()
    samples: Any = run.objective.samples  # pyright: ignore[reportAttributeAccessIssue]
    own = [samples.caption(int(row)) for row in samples.held_out]
    silent = ["", ""]
    assert drawn == 2 * [(silent, 0.0), (silent, 0.5), (own, 0.0), (own, 0.5)]
    with Image.open(run.folder / "samples" / "000001.png") as grid:
        assert grid.height > 2 * grid.width  # five rows of two
    assert any("loss" in one for one in told.told if isinstance(one, dict))
    assert told.told[-1] == "finished"


# Learning


def test_eight_pictures_are_learnt_and_the_true_reference_comes_to_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at are the same pictures as other files: whether it can learn, not whether it generalises."""
    for number, (shape, colour) in enumerate(
        (s, c) for s in ("disc", "cross") for c in toy_pictures.COLOURS.values()
    ):
        ground = Image.new("RGBA", (64, 64), "white")
        ground.alpha_composite(Image.fromarray(toy_pictures.draw(shape, colour, 64)))
        for side, suffix in (("seen", "png"), ("looked-at", "bmp")):
            (tmp_path / side).mkdir(exist_ok=True)
            ground.convert("RGB").save(tmp_path / side / f"{number}.{suffix}")
            (tmp_path / side / f"{number}.txt").write_text("a thing")
    changes = {
        "preset": "mini",
        "base": {"model": "mini"},
        "data__source": str(tmp_path / "seen"),
        "data__held_out": str(tmp_path / "looked-at"),
        "data__size": 64,
        "cache__folder": str(tmp_path / "cache"),
        "training__batch_size": 8,
        "training__steps": 20,
        "training__learning_rate": 1e-3,
        "training__warmup_steps": 0,
        "training__cooldown_steps": 0,
        "training__ema_decay": 0.0,
    }
    encoder = ImageEncoder(mini_encoder())
    run = adapter_run(config(tmp_path, "learning", **changes), FrozenBase(mini.pipeline(), encoder))
    before = run.objective.held_out()
    take(run, 20)
    after = run.objective.held_out()
    assert after["held-out loss"] < 0.9 * before["held-out loss"]
    assert after["gap to shuffled"] > 0.005 > abs(before["gap to shuffled"])
    assert after["gap to none"] > 0.005 > abs(before["gap to none"])
