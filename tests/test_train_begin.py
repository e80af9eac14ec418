"""What a training may begin with, and what it shows: other layouts of data, adapters to go on from, grids."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image, ImageDraw

import tiny
from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import load_adapter, save_adapter
from imprompt.errors import AdapterMismatch, CheckpointError, ConfigError
from imprompt.inputs.encoder import ImageEncoder
from imprompt.lab.making.exporting import encode_png
from imprompt.training.adapters import build_run
from imprompt.training.frozen_base import FrozenBase, hash_weights
from imprompt.training.mechanisms import DecoupledMechanism
from imprompt.training.objectives import image_prompting
from imprompt.training.samples.layouts import EncodedSample, Layout, write_samples
from short_runs import FACE, STEPS, build_base, config, states, take, write_home
from test_watching import StandIn


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


@pytest.fixture(autouse=True)
def one_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))


SOURCES: dict[Layout, str] = {"folder": "", "official": "data.json", "webdataset": "*.tar"}


def some_samples() -> list[EncodedSample]:
    """Six plain pictures; every other one has a reference of its own."""
    samples = []
    for number, color in enumerate(("red", "green", "blue", "teal", "pink", "gold")):
        picture, reference = (encode_png(Image.new("RGB", (16, 16), one)) for one in (color, "navy"))
        samples.append(EncodedSample(picture, f"{color} paper", reference if number % 2 else None))
    return samples


@pytest.mark.slow
def test_three_layouts_give_the_same_features_and_the_same_first_fifty_losses(tmp_path: Path) -> None:
    seen = []
    for layout, inner in SOURCES.items():
        output = tmp_path / layout / "pictures"
        output.mkdir(parents=True)
        write_samples(some_samples(), output, layout)
        changes = {
            "data__source": str(output / inner),
            "cache__folder": str(tmp_path / layout / "cache"),
            "training__batch_size": 2,
        }
        run = build_run(config(tmp_path, f"{layout}-run", **changes), build_base())
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
    base = build_base()
    run = build_run(config(home, "simple", adapter__mechanism="concatenated"), base)
    before = hash_weights(base.unet)
    assert run.train()
    assert hash_weights(base.unet) == before
    assert {name.removeprefix("trained.").split(".")[0] for name in run.optimizer.names} == {"proj", "norm"}
    first, *_, last = states(run)
    assert not any(map(torch.equal, first["trained"], last["trained"]))
    with pytest.raises(CheckpointError):
        load_adapter(run.folder / "adapter.safetensors", image_encoder=None)


def test_a_flow_matching_base_trains(home: Path) -> None:
    """diffusers has no pipeline that samples a U-Net with such a scheduler."""
    base = build_base()
    base.scheduler = base.pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    run = build_run(config(home, "flow"), base)
    assert run.objective.metadata()["prediction"] == "flow"  # pyright: ignore[reportCallIssue]
    before = [weight.detach().clone() for weight in run.optimizer.trained]
    assert np.isfinite(take(run, STEPS)).all()
    assert not any(map(torch.equal, before, run.optimizer.trained))
    assert np.isfinite(list(run.objective.measure_held_out().values())).all()


# Going on from an adapter


@pytest.fixture(scope="module")
def files(home: Path) -> Callable[..., Path]:
    """A new adapter of some kind, written to a file."""

    def written(name: str, kind: str = "SD", suffix: str = ".safetensors", **changes: Any) -> Path:
        run = build_run(config(home, f"start-{name}", **changes), build_base(kind))
        adapter: ImagePromptAdapter = run.objective.mechanism.trained  # pyright: ignore
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
    run = build_run(config(home, "tuned", **start), build_base())
    adapter: ImagePromptAdapter = run.objective.mechanism.trained  # pyright: ignore
    given = load_adapter(path, image_encoder=None).state_dict()
    assert all(torch.equal(value, given[name]) for name, value in adapter.state_dict().items())
    assert run.train()
    assert not any(torch.equal(value, given[name]) for name, value in adapter.state_dict().items())


@pytest.mark.parametrize(("variant", "other"), [("faceid-plus", 2), ("faceid-plusv2", 1)])
def test_the_variant_says_which_version_of_faceid_plus_a_file_is(
    home: Path, files: Callable[..., Path], variant: str, other: int
) -> None:
    """A published .bin file does not say it itself; what says otherwise is refused."""
    start = files(variant, suffix=".bin", adapter__variant=variant)
    changes = {"adapter__variant": variant, "adapter__start": str(start)}
    adapter: Any = build_run(config(home, f"{variant}-on", **changes), build_base()).objective
    assert adapter.mechanism.trained.projection.version == 3 - other
    contrary = files(f"not-{variant}", adapter__variant=f"faceid-plus{'v2' if other == 2 else ''}")
    with pytest.raises(CheckpointError, match=f"is FaceID-Plus version {other}, not {3 - other}"):
        build_run(config(home, f"{variant}-no", **changes | {"adapter__start": str(contrary)}), build_base())


def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_cached(
    home: Path, files: Callable[..., Path], tmp_path: Path
) -> None:
    plain, plus, wide = files("plain"), files("plus", adapter__variant="plus"), tmp_path / "wide.safetensors"
    save_adapter(tiny.adapter(tiny.xl_unet()), wide)
    nowhere = {"cache__folder": str(tmp_path / "cache")}

    def begin(path: Path, **changes: Any) -> None:
        build_run(config(home, "unfit", **nowhere, adapter__start=str(path), **changes), build_base())

    with pytest.raises(ConfigError, match=r"takes image_features and makes 4 tokens; the variant"):
        begin(plus)
    with pytest.raises(ConfigError, match=r"makes 4 tokens; .* adapter\.tokens is 3"):
        begin(plain, adapter__tokens=3)
    with pytest.raises(AdapterMismatch):
        begin(wide)
    other = build_base()
    other.image_encoder = ImageEncoder(mini_encoder())
    with pytest.raises(ConfigError, match=r"takes image_embedding 14 wide; that of base\.image_encoder"):
        build_run(config(home, "unfit", **nowhere, adapter__start=str(plain)), other)
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
    generate = DecoupledMechanism.generate

    def noted(self: Any, pipe: Any, images: Any, scale: float, call: Mapping[str, Any]) -> Any:
        drawn.append((call["prompt"], scale))
        return generate(self, pipe, images, scale, call)

    monkeypatch.setattr(DecoupledMechanism, "generate", noted)
    asked = {
        "watch__references": 2,
        "watch__prompts": ["", "own"],
        "watch__scales": [0.0, 0.5],
        "watch__wandb": "adapters",
    }
    run = build_run(config(home, "watched", training__steps=1, **asked), build_base())
    assert run.train()
    samples: Any = run.objective.samples  # pyright: ignore[reportAttributeAccessIssue]
    own = [samples.caption(int(row)) for row in samples.held_out]
    silent = ["", ""]
    assert drawn == 2 * [(silent, 0.0), (silent, 0.5), (own, 0.0), (own, 0.5)]
    with Image.open(run.folder / "samples" / "000001.png") as grid:
        assert grid.height > 2 * grid.width  # five rows of two
    assert any("loss" in one for one in told.told if isinstance(one, dict))
    assert told.told[-1] == "finished"


# Learning


@pytest.mark.slow
def test_eight_pictures_are_learnt_and_the_true_reference_comes_to_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at are the same pictures as other files: whether it can learn, not whether it generalises."""
    things = [(shape, color) for shape in ("disc", "cross") for color in ("red", "green", "blue", "orange")]
    for number, (shape, color) in enumerate(things):
        ground = Image.new("RGB", (128, 128), "white")
        pen = ImageDraw.Draw(ground)
        if shape == "disc":
            pen.ellipse((16, 16, 112, 112), fill=color)
        else:
            pen.line((16, 16, 112, 112), fill=color, width=24)
            pen.line((112, 16, 16, 112), fill=color, width=24)
        for side, suffix in (("seen", "png"), ("looked-at", "bmp")):
            (tmp_path / side).mkdir(exist_ok=True)
            ground.save(tmp_path / side / f"{number}.{suffix}")
            (tmp_path / side / f"{number}.txt").write_text("a thing")
    changes = {
        "preset": "mini",
        "base": {"model": "mini"},
        "data__source": str(tmp_path / "seen"),
        "data__held_out": str(tmp_path / "looked-at"),
        "data__size": 128,
        "cache__folder": str(tmp_path / "cache"),
        "training__batch_size": 8,
        "training__steps": 20,
        "training__learning_rate": 1e-3,
        "training__warmup_steps": 0,
        "training__cooldown_steps": 0,
        "training__ema_decay": 0.0,
    }
    encoder = ImageEncoder(mini_encoder())
    run = build_run(config(tmp_path, "learning", **changes), FrozenBase(mini.pipeline(), encoder))
    before = run.objective.measure_held_out()
    take(run, 20)
    after = run.objective.measure_held_out()
    assert after["held-out loss"] < 0.9 * before["held-out loss"]
    for gap in ("gap to shuffled", "gap to none"):
        # Untrained image tokens disturb a trained base, so the gaps begin below zero.
        assert after[gap] > 0.01 > 0.005 > before[gap]
