"""From references to pictures: seeds, settings, and a pipeline left as it was."""

import errno
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

import tiny
from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.diffusers_internals import Branches
from imprompt.errors import (
    AdapterMismatch,
    AttachmentError,
    ConfigError,
    ImageError,
    InvalidReference,
    OutputError,
    UnknownModel,
)
from imprompt.generation import guidance
from imprompt.generation.generate import generate, generate_each
from imprompt.generation.job import DEFAULT_STEPS, read_settings
from imprompt.generation.models import load_pipeline, make_control_image
from imprompt.generation.settings import Control, Settings
from imprompt.reference import Reference
from imprompt.runtime.picture_files import save_picture


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


# A picture to start from, ControlNets


def one(pipe: Any, adapter: ImagePromptAdapter, *references: Any, **settings: Any) -> Image.Image:
    asked = replace(Settings(steps=2), **settings)
    return next(generate_each(pipe, [(adapter, references or [tiny.picture()])], asked))


def controlnet(pipe: Any) -> ControlNetModel:
    """A ControlNet with something to say: new ones are silent."""
    made = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    return made


def test_a_picture_to_start_from_keeps_its_proportions(pipe: Any, adapter: ImagePromptAdapter) -> None:
    made = one(pipe, adapter, init_image=tiny.picture(width=60, height=31), strength=0.5)
    assert made.size == (32, 16)
    assert one(pipe, adapter, init_image=tiny.picture(), size=(24, 16)).size == (24, 16)


def test_scale_zero_is_the_base_with_a_picture_to_start_from(pipe: Any, adapter: ImagePromptAdapter) -> None:
    start = tiny.picture(width=16, height=16)
    base = AutoPipelineForImage2Image.from_pipe(pipe)
    base.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    expected = base("", image=start, strength=0.5, num_inference_steps=2, generator=generator).images[0]
    made = one(pipe, adapter, Reference(tiny.picture(), scale=0), init_image=start, strength=0.5)
    assert made.tobytes() == expected.tobytes()


def test_inpainting_changes_what_is_white_only(pipe: Any, adapter: ImagePromptAdapter) -> None:
    start, mask = tiny.picture(width=16, height=16), Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    made = one(pipe, adapter, init_image=start, inpaint=mask.convert("RGB"))
    assert made.crop((0, 0, 8, 16)).tobytes() == start.crop((0, 0, 8, 16)).tobytes()
    assert made.crop((8, 0, 16, 16)).tobytes() != start.crop((8, 0, 16, 16)).tobytes()


def test_controls_act_and_add_up(pipe: Any, adapter: ImagePromptAdapter) -> None:
    follow = Control(controlnet(pipe), tiny.picture(seed=3))
    silent = follow._replace(scale=0.0)
    made = {
        name: one(pipe, adapter, controls=controls, size=(16, 16)).tobytes()
        for name, controls in {
            "none": [],
            "one": [follow],
            "two": [follow, follow],
            "silent": [silent],
        }.items()
    }
    assert made["none"] == made["silent"]
    assert len(set(made.values())) == 3


@pytest.mark.parametrize("more", [{}, {"inpaint": Image.new("RGB", (16, 16), "white")}])
def test_a_control_and_a_picture_to_start_from(
    pipe: Any, adapter: ImagePromptAdapter, more: dict[str, Any]
) -> None:
    start = tiny.picture(width=16, height=16)
    plain = one(pipe, adapter, init_image=start, **more)
    controlled = one(
        pipe, adapter, init_image=start, controls=[Control(controlnet(pipe), tiny.picture(seed=3))], **more
    )
    assert plain.tobytes() != controlled.tobytes()
    assert type(pipe) is StableDiffusionPipeline
    assert not adapter.is_attached


def test_the_embedded_controlnet_is_shown_the_edges_of_a_picture_and_others_the_picture() -> None:
    picture = tiny.picture(width=64, height=64)
    assert make_control_image(picture, "mini").tobytes() == mini.edge_picture(picture).tobytes()
    assert make_control_image(picture, "owner/name") is picture


def test_a_control_for_another_base_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = controlnet(tiny.xl_pipeline())
    with pytest.raises(
        ConfigError, match="this ControlNet is for another base: its cross_attention_dim is 28"
    ):
        one(pipe, adapter, controls=[Control(other, tiny.picture())])


# Guidance in a part of the steps


def generate_guided(
    pipe: Any, adapter: ImagePromptAdapter, interval: tuple[float, float], **settings: Any
) -> np.ndarray:
    made = one(pipe, adapter, guidance_interval=interval, guidance_scale=5.0, steps=4, **settings)
    return np.asarray(made).astype(int)


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75), (0.0, 0.2), (0.9, 1.0)])
@pytest.mark.parametrize("kind", ["text", "start", "inpaint", "control", "xl"])
def test_dropping_the_negative_half_is_guidance_of_one(
    pipe: Any,
    adapter: ImagePromptAdapter,
    monkeypatch: pytest.MonkeyPatch,
    interval: tuple[float, float],
    kind: str,
) -> None:
    if kind == "xl":
        pipe, adapter = xl()
    start, white = tiny.picture(width=16, height=16), Image.new("RGB", (16, 16), "white")
    settings = {
        "start": {"init_image": start, "strength": 1.0},
        "inpaint": {"init_image": start, "inpaint": white},
        "control": {"controls": [Control(controlnet(pipe), start)]},
    }.get(kind, {})
    dropped = generate_guided(pipe, adapter, interval, **settings)
    monkeypatch.setattr(guidance, "list_doubled_tensors", lambda pipe: [])
    kept = generate_guided(pipe, adapter, interval, **settings)
    assert np.abs(dropped - kept).max() <= 1  # rounding to 8 bits
    everywhere = one(pipe, adapter, guidance_scale=5.0, steps=4, **settings)
    assert np.abs(dropped - np.asarray(everywhere).astype(int)).max() > 1


@functools.cache
def xl() -> tuple[Any, ImagePromptAdapter]:
    pipe = tiny.xl_pipeline()
    made = tiny.adapter(pipe.unet)
    made.image_encoder = tiny.vision_model()  # pyright: ignore[reportAttributeAccessIssue]
    return pipe, made


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.0, 0.5), [2, 2, 2, 2, 1, 1, 1, 1]),
        ((0.25, 0.75), [2, 1, 2, 2, 2, 2, 1, 1]),  # nothing is called before the first step
        ((0.5, 1.0), [2, 1, 1, 1, 2, 2, 2, 2]),
    ],
)
def test_the_negative_half_is_computed_only_where_it_must_be(
    pipe: Any, adapter: ImagePromptAdapter, interval: tuple[float, float], expected: list[int]
) -> None:
    calls = record_calls(pipe, adapter, interval)
    assert [len(call.sample) for call in calls] == expected
    assert [len(call.text) for call in calls] == expected


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
def test_a_step_in_and_outside_the_interval_is_the_bare_unet_bit_for_bit(
    pipe: Any, adapter: ImagePromptAdapter, interval: tuple[float, float]
) -> None:
    """Text, image prompt and mask have the rows of the latents, at the bounds of the interval too."""
    branches: dict[int, Branches] = {1: ("positive",), 2: ("negative", "positive")}
    for call in record_calls(pipe, adapter, interval, mask=MASK):
        reference = Reference(tiny.picture(), mask=MASK)
        act = functools.partial(adapter.use, reference, branches=branches[len(call.sample)])
        with adapter.attach(pipe.unet), act(), torch.no_grad():
            alone = pipe.unet(call.sample, call.timestep, call.text).sample
        assert torch.equal(alone, call.output)


MASK = torch.linspace(0, 1, 63).reshape(7, 9)


class Call(NamedTuple):
    """A recorded call of a U-Net."""

    sample: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    output: torch.Tensor


def record_calls(
    pipe: Any, adapter: ImagePromptAdapter, interval: tuple[float, float], **settings: Any
) -> list[Call]:
    calls: list[Call] = []

    def record(_: object, args: Any, options: dict[str, Any], output: Any) -> None:
        sample, timestep = args
        calls.append(Call(sample, timestep, options["encoder_hidden_states"], output[0]))

    with pipe.unet.register_forward_hook(record, with_kwargs=True):
        one(
            pipe,
            adapter,
            Reference(tiny.picture(), **settings),
            guidance_interval=interval,
            guidance_scale=5.0,
            steps=8,
        )
    return calls


def test_guidance_in_part_starts_anew_with_every_picture(pipe: Any, adapter: ImagePromptAdapter) -> None:
    settings = Settings(steps=4, guidance_scale=5.0, guidance_interval=(0.25, 0.75))
    prompted = [(adapter, [tiny.picture()])]
    both = list(generate_each(pipe, prompted, settings, seeds=[0, 1]))
    alone = [next(generate_each(pipe, prompted, settings, seeds=[seed])) for seed in (0, 1)]
    assert [one.tobytes() for one in both] == [one.tobytes() for one in alone]


# Several adapters


def test_references_of_several_adapters_act_together(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = tiny.adapter(pipe.unet, seed=5)
    other.image_encoder = tiny.vision_model()  # pyright: ignore[reportAttributeAccessIssue]
    each = [(adapter, [tiny.picture(seed=1)]), (other, [tiny.picture(seed=2)])]
    made = {
        next(generate_each(pipe, some, Settings(steps=2))).tobytes() for some in (each[:1], each[1:], each)
    }
    assert len(made) == 3
    assert not adapter.is_attached
    assert not other.is_attached


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (8, 12)}, "size must be a multiple of 8 pixels on this base, not 12"),
        ({"size": (0, 8)}, "size must be a multiple of 8 pixels on this base, not 0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 1000}, "1000 steps are too many for this base's scheduler, DDIMScheduler"),
        ({"steps": 1001}, "1001 steps are too many for this base's scheduler, DDIMScheduler"),
        ({"strength": 0.5}, "strength is about init_image, and there is none"),
        ({"init_image": tiny.picture(), "strength": 1.5}, "strength must be above 0 and up to 1, not 1.5"),
        ({"init_image": tiny.picture(), "strength": 0.01}, "strength 0.01 of 25 steps is less than one step"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval must be 0 ≤ start < end ≤ 1, not 0.5 and 0.5"),
        (
            {"guidance_interval": (0.0, 0.5), "guidance_scale": 1.0},
            "guidance_interval needs a guidance_scale above 1, not 1.0",
        ),
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
    loaded = load_pipeline(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    assert pictures(loaded, adapter) == pictures(pipe, adapter)


def test_a_base_comes_where_and_as_it_is_asked_for(tmp_path: Path, pipe: Any) -> None:
    pipe.save_pretrained(tmp_path)
    loaded: Any = load_pipeline(str(tmp_path), device="meta", dtype=torch.bfloat16)
    assert (loaded.unet.device.type, loaded.unet.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frob", "no base model 'frob': no such folder, nor 'mini', nor a hub id"),
        ("no/such/folder", "no base model 'no/such/folder'"),
        ("{folder}", "is a folder without model_index.json"),
        ("{folder}/broken", "the base model .* cannot be loaded"),
    ],
)
def test_an_unknown_base(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    with pytest.raises(UnknownModel, match=message) as raised:
        load_pipeline(name.format(folder=tmp_path))
    assert "\n" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(UnknownModel, match="the base model owner/no-such-model cannot be loaded") as raised:
        load_pipeline("owner/no-such-model")
    assert "\n" not in str(raised.value)


# Pictures on disk


def test_settings_come_back_from_a_picture(tmp_path: Path) -> None:
    settings = {"prompt": "λ → \n 猫", "seed": 2**63 - 1, "scale": 0.1, "references": ["cat.png"]}
    save_picture(tiny.picture(), tmp_path / "out.png", settings)
    assert read_settings(tmp_path / "out.png") == settings
    with Image.open(tmp_path / "out.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(tiny.picture()))


def test_a_picture_without_settings_is_said_to_be_one(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        tiny.picture().save(tmp_path / f"x.{suffix}")
        with pytest.raises(ImageError, match=f"x.{suffix} holds no settings of imprompt"):
            read_settings(tmp_path / f"x.{suffix}")
    (tmp_path / "y.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match=r"y.png is truncated or damaged"):
        read_settings(tmp_path / "y.png")
    with pytest.raises(ImageError, match="no such file"):
        read_settings(tmp_path / "z.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [("a/out.png", "there is no folder"), ("out.gif", "must end in .png"), ("out", ".png")],
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
