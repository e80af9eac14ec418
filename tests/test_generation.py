"""From references to pictures: seeds, settings, and a pipeline left as it was."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

import tiny
from imprompt.adapter import ImagePromptAdapter
from imprompt.errors import (
    AdapterMismatch,
    AttachmentError,
    ConfigError,
    ImageError,
    InvalidReference,
    OutputError,
    UnknownModel,
)
from imprompt.generation import DEFAULT_STEPS, Settings, generate, generate_each, load_base
from imprompt.job import read_settings, save_picture
from imprompt.reference import Reference


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny.sd_pipeline()


@pytest.fixture(scope="module")
def adapter(pipe: StableDiffusionPipeline) -> ImagePromptAdapter:
    made = tiny.adapter(pipe.unet)
    made.image_encoder = tiny.vision_model()  # pyright: ignore[reportAttributeAccessIssue]
    return made


def pictures(pipe: Any, adapter: ImagePromptAdapter, *references: Any, **settings: Any) -> list[bytes]:
    settings.setdefault("steps", 2)
    return [
        picture.tobytes() for picture in generate(pipe, adapter, references or [tiny.picture()], **settings)
    ]


# Laws


def test_a_seed_gives_the_same_picture_alone_or_among_others(pipe: Any, adapter: ImagePromptAdapter) -> None:
    together = pictures(pipe, adapter, seeds=[3, 0, 7])
    assert together == [pictures(pipe, adapter, seeds=[seed])[0] for seed in (3, 0, 7)]
    assert len(set(together)) == 3


def test_scale_zero_gives_the_picture_of_the_base(pipe: Any, adapter: ImagePromptAdapter) -> None:
    base = pipe("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert pictures(pipe, adapter, Reference(tiny.picture(), scale=0), prompt="a cat") == [base.tobytes()]


def test_the_pipeline_is_as_before(pipe: Any, adapter: ImagePromptAdapter) -> None:
    before = dict(pipe.unet.attn_processors)
    pictures(pipe, adapter)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())
    assert not adapter.is_attached


def test_it_is_as_before_after_an_error_too(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(ImageError):
        pictures(pipe, adapter, "no-such-file.png")
    assert not adapter.is_attached

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(generate_each(pipe, [(adapter, [tiny.picture()])], Settings(steps=2), on_step=stop))
    assert not adapter.is_attached


def test_each_setting_reaches_the_picture(pipe: Any, adapter: ImagePromptAdapter) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "a dog"},
        {"negative_prompt": "rain"},
        {"guidance_scale": 2.0},
        {"steps": 3},
        {"seeds": [1]},
        {"size": 24},
    ]
    assert len({pictures(pipe, adapter, **change)[0] for change in changes}) == len(changes)


def test_each_reference_and_its_scale_reach_the_picture(pipe: Any, adapter: ImagePromptAdapter) -> None:
    one, other = tiny.picture(seed=1), tiny.picture(seed=2)
    sets = [one], [other], [one, other], [[one]], [Reference(one, scale=0.5)], [Reference([one, other])]
    assert (
        len({pictures(pipe, adapter, *references)[0] for references in sets}) == len(sets) - 1
    )  # [[x]] is [x]


def test_pictures_come_as_soon_as_they_are_made(pipe: Any, adapter: ImagePromptAdapter) -> None:
    steps = []
    prompted = [(adapter, [tiny.picture()])]
    each = generate_each(pipe, prompted, Settings(steps=2), seeds=[0, 1], on_step=lambda: steps.append(1))
    assert not steps
    next(each)
    assert len(steps) == 2
    assert adapter.is_attached
    assert len(list(each)) == 1
    assert len(steps) == 4
    assert not adapter.is_attached


def test_the_default_number_of_steps(pipe: Any, adapter: ImagePromptAdapter) -> None:
    steps = []
    list(generate_each(pipe, [(adapter, [tiny.picture()])], Settings(), on_step=lambda: steps.append(1)))
    assert len(steps) == DEFAULT_STEPS


def test_size_is_in_pixels(pipe: Any, adapter: ImagePromptAdapter) -> None:
    assert generate(pipe, adapter, [tiny.picture()], steps=1, size=32)[0].size == (32, 32)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (8, 12)}, "size must be a multiple of 8 pixels on this base, not 12"),
        ({"size": (0, 8)}, "size must be a multiple of 8 pixels on this base, not 0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 1000}, "1000 steps are too many for this base's scheduler, DDIMScheduler"),
        ({"steps": 1001}, "1001 steps are too many for this base's scheduler, DDIMScheduler"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, not nan"),
        ({"seeds": [-1]}, "a seed must be 0 to 9223372036854775807, not -1"),
        ({"seeds": [2**63]}, "a seed must be 0 to"),
    ],
)
def test_settings_that_no_base_can_honour(
    pipe: Any, adapter: ImagePromptAdapter, settings: dict[str, Any], message: str
) -> None:
    seeds = settings.pop("seeds", [0])
    with pytest.raises(ConfigError, match=message):  # refused before the first picture is asked for
        generate_each(pipe, [(adapter, [tiny.picture()])], Settings(**settings), seeds=seeds)


def test_no_reference_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(InvalidReference):
        generate(pipe, adapter, [], steps=1)


def test_an_adapter_for_another_base_is_refused(adapter: ImagePromptAdapter) -> None:
    with pytest.raises(AdapterMismatch):
        generate(tiny.xl_pipeline(), adapter, [tiny.picture()], steps=1)


def test_an_attached_adapter_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), pytest.raises(AttachmentError):
        generate(pipe, adapter, [tiny.picture()], steps=1)


# Base models


def test_a_base_is_loaded_from_a_folder(tmp_path: Path, pipe: Any, adapter: ImagePromptAdapter) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = load_base(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    assert pictures(loaded, adapter) == pictures(pipe, adapter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frob", "no base model 'frob': no such folder, nor 'mini', nor a hub id"),
        ("no/such/folder", "no base model 'no/such/folder'"),
        ("{folder}", "is a folder without model_index.json"),
        ("{folder}/file", "is a file; a base model is a folder in diffusers' format"),
        ("{folder}/broken", "the base model .* cannot be loaded"),
    ],
)
def test_an_unknown_base(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    with pytest.raises(UnknownModel, match=message) as raised:
        load_base(name.format(folder=tmp_path))
    assert "\n" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(UnknownModel, match="the base model owner/no-such-model cannot be loaded") as raised:
        load_base("owner/no-such-model")
    assert "\n" not in str(raised.value)


# Pictures on disk


def test_settings_come_back_from_a_picture(tmp_path: Path) -> None:
    settings = {"prompt": "λ → \n 猫", "seed": 2**63 - 1, "scale": 0.1, "references": ["cat.png"]}
    save_picture(tiny.picture(), tmp_path / "out.png", settings)
    assert read_settings(tmp_path / "out.png") == settings
    with Image.open(tmp_path / "out.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(tiny.picture()))


def test_a_picture_without_settings_is_said_to_be_one(tmp_path: Path) -> None:
    tiny.picture().save(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("x.png", "y.png"):
        with pytest.raises(ImageError, match=f"{name} holds no settings of imprompt"):
            read_settings(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        read_settings(tmp_path / "z.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [("a/out.png", "there is no folder"), ("out.jpg", "must end in .png"), ("out", ".png")],
)
def test_places_where_no_picture_can_be_written(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        save_picture(tiny.picture(), tmp_path / name, {})


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_no_half_picture_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(picture: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        save_picture(tiny.picture(), tmp_path / "out.png", {})
    assert list(tmp_path.iterdir()) == []
