"""`imprompt.compat`: enabled for a U-Net, answers on all its pipelines, and leaves everything as it was."""

import copy
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.loaders.ip_adapter import IPAdapterMixin
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import adapter_files
import imprompt
import tiny
from compat_scripts import (
    ONE,
    TWO,
    assert_close,
    assert_differ,
    assert_unchanged,
    latents,
    load,
    load_base,
    run_in_diffusers,
    run_in_imprompt,
    sd,
    stack,
    xl,
)
from imprompt import compat
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.checkpoint import save_adapter
from imprompt.compat.calls import find_adapters
from imprompt.compat.scales import read_scale
from imprompt.errors import AdapterMismatch, AttachmentError, CheckpointError, InvalidReference
from test_attachment import traces
from tiny_pipelines import CASES

ENABLE = r"imprompt\.compat\.enable\(pipe\)"


@pytest.fixture
def pipe() -> Any:
    """A pipeline on which it is enabled, with one adapter."""
    pipe = sd()
    compat.enable(pipe)
    load_base(pipe)
    yield pipe
    compat.disable(pipe)


# On and off


def test_disable_leaves_everything_as_it_was() -> None:
    pipe = tiny.sd_pipeline()
    plain, before, methods = latents(pipe), traces(pipe), dict(vars(IPAdapterMixin))
    compat.enable(pipe)
    compat.enable(pipe)
    load_base(pipe)
    pipe.set_ip_adapter_scale(0.5)
    assert_differ(latents(pipe, ip_adapter_image_embeds=[stack(tiny.embedding(1))]), plain)
    assert torch.equal(latents(pipe), plain)
    compat.disable(pipe)
    assert traces(pipe) == before
    assert dict(vars(IPAdapterMixin)) == methods
    assert torch.equal(latents(pipe), plain)
    with pytest.raises(AttachmentError, match="is not enabled on this pipeline's U-Net"):
        compat.disable(pipe)


def test_other_pipelines_stay_those_of_diffusers(pipe: Any) -> None:
    other = sd()
    load_base(other)
    assert (
        "IPAdapter"
        in type(
            other.unet.attn_processors["mid_block.attentions.0.transformer_blocks.0.attn2.processor"]
        ).__name__
    )
    other.set_ip_adapter_scale(0.3)
    theirs = latents(other, ip_adapter_image=ONE)
    other.unload_ip_adapter()
    pipe.set_ip_adapter_scale(0.3)
    assert_close(latents(pipe, ip_adapter_image=ONE), theirs)


def test_a_pipeline_without_these_calls_is_refused() -> None:
    case = next(case for case in CASES if str(case) == "SD1.5, T2I-Adapter")
    with pytest.raises(AttachmentError, match=r"StableDiffusionAdapterPipeline has no load_ip_adapter"):
        compat.enable(case.build())


def test_an_adapter_that_diffusers_has_loaded_is_named_with_its_remedy() -> None:
    pipe = sd()
    load_base(pipe)
    for refused in (lambda: compat.enable(pipe), lambda: tiny.adapter(pipe.unet).attach(pipe)):
        with pytest.raises(AttachmentError, match=r"own IP-Adapter is loaded .*pipe\.unload_ip_adapter\(\)"):
            refused()
    pipe.unload_ip_adapter()
    compat.enable(pipe)
    compat.disable(pipe)


def test_copies_of_the_unet_are_not_enabled(pipe: Any) -> None:
    other = sd()
    other.unet = copy.deepcopy(pipe.unet)
    assert find_adapters(other) is None
    assert other.unet.encoder_hid_proj is None
    assert other.unet.state_dict().keys() == pipe.unet.state_dict().keys() == sd().unet.state_dict().keys()
    assert torch.equal(latents(other), latents(pipe))


# Refused until it is enabled


def test_every_call_names_enable_while_an_adapter_is_attached() -> None:
    pipe = sd()
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    with tiny.adapter(pipe.unet).attach(pipe):
        for call in (
            lambda: load_base(pipe),
            lambda: pipe.set_ip_adapter_scale(0.5),
            pipe.unload_ip_adapter,
            lambda: latents(pipe, ip_adapter_image=ONE),
            lambda: latents(pipe, ip_adapter_image_embeds=[stack(tiny.embedding(1))]),
            lambda: latents(other, ip_adapter_image=ONE),
        ):
            with pytest.raises(AttachmentError, match=ENABLE):
                call()
    assert not vars(pipe).keys() & {"load_ip_adapter", "unload_ip_adapter"}


def test_an_attached_adapter_and_one_that_is_loaded_add_up() -> None:
    def script(pipe: Any) -> Tensor:
        load_base(pipe, 0, 9)
        return latents(pipe, ip_adapter_image=[ONE, TWO])

    expected, pipe = run_in_diffusers(sd(), script), sd()
    adapter = tiny.adapter(pipe.unet, seed=9)
    adapter.image_encoder = pipe.image_encoder
    with adapter.attach(pipe):
        compat.enable(pipe)
        load_base(pipe)
        with adapter.references(TWO):
            assert_close(latents(pipe, ip_adapter_image=ONE), expected)
            other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
            assert_close(latents(other, ip_adapter_image=ONE), expected)
        compat.disable(pipe)
        with pytest.raises(AttachmentError, match=ENABLE):
            pipe.set_ip_adapter_scale(1.0)


# Loading


def write_files(folder: Path) -> str:
    """A repository as it is published: files of adapters, with the image encoder beside them."""
    (folder / "models").mkdir()
    unet = tiny.sd_unet()
    save_adapter(tiny.adapter(unet), folder / "models" / "one.safetensors")
    save_adapter(tiny.adapter(unet, seed=9), folder / "models" / "two.bin")
    tiny.vision_model(seed=3).save_pretrained(folder / "models" / "image_encoder")
    return str(folder)


def test_files_of_a_folder_with_its_image_encoder(tmp_path: Path) -> None:
    repository = write_files(tmp_path)

    def script(pipe: Any) -> Tensor:
        pipe.load_ip_adapter(repository, subfolder="models", weight_name=["one.safetensors", "two.bin"])
        pipe.set_ip_adapter_scale([0.7, 0.4])
        return latents(pipe, ip_adapter_image=[ONE, TWO])

    assert_unchanged(tiny.sd_pipeline, script)


def test_unloading_removes_what_loading_has_added_and_nothing_else(tmp_path: Path) -> None:
    repository, own = write_files(tmp_path), sd()
    for pipe, encoder in ((tiny.sd_pipeline(), None), (own, own.image_encoder)):
        components, config = dict(pipe.components), dict(pipe.config)
        compat.enable(pipe)
        pipe.load_ip_adapter(repository, subfolder="models", weight_name="one.safetensors")
        assert pipe.image_encoder is not None
        latents(pipe, ip_adapter_image=ONE)
        pipe.unload_ip_adapter()
        assert pipe.image_encoder is encoder
        assert (dict(pipe.components), dict(pipe.config)) == (components, config)
        compat.disable(pipe)


def test_loading_again_replaces_the_adapter(pipe: Any) -> None:
    pipe.set_ip_adapter_scale(0.2)
    load_base(pipe, 9)

    def fresh(pipe: Any) -> Tensor:
        load_base(pipe, 9)
        return latents(pipe, ip_adapter_image=ONE)

    assert torch.equal(latents(pipe, ip_adapter_image=ONE), run_in_imprompt(sd(), fresh))


def test_an_adapter_that_cannot_be_loaded_leaves_the_one_before(pipe: Any) -> None:
    before = latents(pipe, ip_adapter_image=ONE)
    good, other_base = tiny.adapter(pipe.unet, seed=9), tiny.adapter(tiny.xl_unet())
    with pytest.raises(AdapterMismatch, match="this adapter is for"):
        load(pipe, good, other_base)
    damaged = adapter_files.nest_tensors(adapter_files.official(good))
    del damaged["ip_adapter"]["3.to_k_ip.weight"]
    with pytest.raises(CheckpointError, match=r"the IP-Adapter number 0: ip_adapter\.3\.to_k_ip\.weight"):
        pipe.load_ip_adapter(damaged, subfolder="", weight_name="", image_encoder_folder=None)
    assert torch.equal(latents(pipe, ip_adapter_image=ONE), before)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_kolors_may_load_again_after_unloading() -> None:
    case = next(case for case in CASES if str(case) == "Kolors, text-to-image")
    pipe = case.build()
    plain = case.latents(pipe)
    compat.enable(pipe)
    for _ in range(2):
        load_base(pipe)
        assert_differ(case.latents(pipe, ip_adapter_image=ONE), plain)
        pipe.unload_ip_adapter()
    compat.disable(pipe)
    assert torch.equal(case.latents(pipe), plain)


def test_a_second_faceid_adapter_brings_its_own_lora() -> None:
    def swapped(pipe: Any) -> Tensor:
        load(pipe, adapter_files.adapter(pipe.unet, "faceid"))
        pipe.unload_ip_adapter()
        return alone(pipe)

    def alone(pipe: Any) -> Tensor:
        load(pipe, adapter_files.adapter(pipe.unet, "faceid", seed=5))
        face = torch.ones(2, 1, adapter_files.FACE)
        return latents(pipe, ip_adapter_image_embeds=[face], cross_attention_kwargs={"scale": 0.5})

    assert_close(run_in_imprompt(sd(), swapped), run_in_diffusers(sd(), alone))


# Without an adapter, without an image prompt


def test_a_call_without_an_image_prompt_is_the_base_model(pipe: Any) -> None:
    with_picture = latents(pipe, ip_adapter_image=ONE)
    assert torch.equal(latents(pipe), latents(sd()))
    assert torch.equal(latents(pipe, ip_adapter_image=ONE), with_picture)


def test_an_image_prompt_without_an_adapter_is_refused(pipe: Any) -> None:
    pipe.unload_ip_adapter()
    for call in (
        lambda: latents(pipe, ip_adapter_image=ONE),
        lambda: latents(pipe, ip_adapter_image_embeds=[stack(tiny.embedding(1))]),
        lambda: pipe.set_ip_adapter_scale(0.5),
    ):
        with pytest.raises(AttachmentError, match="no IP-Adapter is loaded on this U-Net"):
            call()


def test_keys_and_values_are_computed_once_per_generation(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    adapter = find_adapters(pipe).adapters[0].adapter  # pyright: ignore[reportOptionalMemberAccess]
    adapter.projection.register_forward_hook(lambda *_: calls.append(0))
    for generations in (1, 2):
        latents(pipe, ip_adapter_image=ONE, num_inference_steps=4)
        assert len(calls) == generations


# Other pipelines


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        StableDiffusionImg2ImgPipeline.from_pipe,
        AutoPipelineForImage2Image.from_pipe,
        lambda pipe: StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False),
    ],
)
def test_a_pipeline_that_shares_the_unet_takes_the_same_calls(make: Any) -> None:
    settings = {"image": TWO.resize((16, 16)), "strength": 0.9, "num_inference_steps": 3}

    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        other = make(pipe)
        other.set_progress_bar_config(disable=True)
        other.set_ip_adapter_scale(0.6)
        return latents(other, ip_adapter_image=ONE, **settings)

    assert_unchanged(sd, script)


def test_it_is_unloaded_and_disabled_from_any_of_them(pipe: Any) -> None:
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.unload_ip_adapter()
    with pytest.raises(AttachmentError, match="no IP-Adapter is loaded"):
        latents(pipe, ip_adapter_image=ONE)
    compat.disable(other)
    assert find_adapters(pipe) is None
    compat.enable(other)
    assert find_adapters(pipe) is not None


# Scales

NUMBERS = st.floats(-2, 2)


def blocks(section: str, counts: dict[str, int]) -> st.SearchStrategy[Any]:
    """What a section may have: a number, a list of one, or these for some of its blocks."""
    each = {
        block: NUMBERS
        | st.lists(NUMBERS, min_size=count, max_size=count)
        | st.lists(NUMBERS, min_size=1, max_size=1)
        for block, count in counts.items()
    }
    return NUMBERS | st.fixed_dictionaries({}, optional=each)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "down": blocks("down", {"block_1": 1}),
            "mid": NUMBERS | st.lists(NUMBERS, min_size=1, max_size=1),
            "up": blocks("up", {"block_0": 2}),
        },
    )
)
def test_a_dictionary_means_what_it_means_in_diffusers(scale: dict[str, Any]) -> None:
    names = {number: name for number, (name, _) in find_cross_attention_layers(XL).items()}
    (expected,) = cast(Any, _maybe_expand_lora_scales(XL, [scale], default_scale=0.0))
    read = read_scale(scale, names)
    for number, name in names.items():
        (value,) = [value for prefix, value in expected.items() if name.startswith(prefix)]
        assert read[number] == value


XL = tiny.xl_unet()


def test_one_number_is_for_all_adapters(pipe: Any) -> None:
    load_base(pipe, 0, 9)
    pipe.set_ip_adapter_scale(0.4)
    together = latents(pipe, ip_adapter_image=[ONE, TWO])
    pipe.set_ip_adapter_scale([0.4, 0.4])
    assert torch.equal(latents(pipe, ip_adapter_image=[ONE, TWO]), together)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([0.1, 0.2], "2 scales for 1 adapters"),
        ({"down": {"block_7": 1.0}}, "'down' of this U-Net has block_0, not 'block_7'"),
        ({"left": 1.0}, "a scale dictionary has down, mid, up, not 'left'"),
        ({"up": {"block_1": [1.0, 2.0, 3.0]}}, r"up\.block_1 has 2 spatial transformers, not 3"),
        ("much", "must be a finite number, not 'much'"),
        (math.nan, "must be a finite number, not nan"),
    ],
)
def test_impossible_scales_are_refused_and_change_nothing(pipe: Any, scale: Any, message: str) -> None:
    before = latents(pipe, ip_adapter_image=ONE)
    with pytest.raises(InvalidReference, match=message):
        pipe.set_ip_adapter_scale(scale)
    assert torch.equal(latents(pipe, ip_adapter_image=ONE), before)


def test_a_callback_may_change_the_scale_part_way() -> None:
    def cut(pipe: Any, step: int, _: Any, tensors: Any) -> Any:
        if step == 0:
            pipe.set_ip_adapter_scale(0.0)
        return tensors

    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        return latents(pipe, ip_adapter_image=ONE, num_inference_steps=3, callback_on_step_end=cut)

    assert_unchanged(xl, script)


def test_it_is_reached_by_import_and_not_loaded_with_imprompt() -> None:
    assert imprompt.compat is compat
