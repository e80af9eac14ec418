"""diffusers has the private parts that imprompt reads, so that a new version of it breaks here."""

import inspect
from types import CodeType
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.free_noise_utils import SplitInferenceModule
from diffusers.pipelines.pag.pag_utils import PAGMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from torch import nn

import tiny
from imprompt.attention import diffusers_internals as internals
from tiny_bases import motion_unet
from tiny_pipelines import kind_of

LOOPS = sorted(internals.SAMPLING_LOOPS)


def variables_of(kind: Any) -> set[str]:
    code = code_of(kind)
    return {*code.co_varnames, *code.co_cellvars}


def code_of(kind: Any) -> CodeType:
    return inspect.unwrap(kind.__call__).__code__


@pytest.mark.parametrize("loop", LOOPS)
def test_a_known_sampling_loop_has_the_variables_that_are_read(loop: str) -> None:
    kind = kind_of(loop.removesuffix(".__call__"))
    assert code_of(kind).co_qualname == loop
    assert code_of(kind).co_varnames[0] == "self"
    assert kind.__module__.startswith("diffusers.pipelines.")
    assert {"timesteps", "i", "latents", "batch_size"} <= variables_of(kind)
    assert {"num_images_per_prompt", "num_videos_per_prompt"} & variables_of(kind)
    assert isinstance(kind.do_classifier_free_guidance, property)
    assert "enumerate(timesteps)" in inspect.getsource(inspect.unwrap(kind.__call__))


@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
def test_a_pipeline_takes_an_image_prompt_of_diffusers_own_under_these_names(name: str) -> None:
    assert name in inspect.signature(StableDiffusionPipeline.__call__).parameters


def test_inpainting_keeps_the_part_that_it_cuts_out_in_these_variables() -> None:
    names = {"crops_coords", "original_image", "width", "height", "padding_mask_crop"}
    assert names <= variables_of(StableDiffusionInpaintPipeline)


def test_the_classes_tell_which_guidance_they_have() -> None:
    assert hasattr(StableDiffusionInstructPix2PixPipeline, "image_guidance_scale")
    assert hasattr(PAGMixin, "do_perturbed_attention_guidance")
    assert not hasattr(StableDiffusionPipeline, "image_guidance_scale")
    assert not hasattr(StableDiffusionPipeline, "do_perturbed_attention_guidance")


def test_the_guidance_scale_of_a_running_call_can_be_set() -> None:
    pipe = tiny.sd_pipeline()
    internals.set_guidance_scale(pipe, 3.0)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (3.0, True)
    internals.set_guidance_scale(pipe, 1.0)
    assert not pipe.do_classifier_free_guidance


def test_stable_diffusion_exchanges_its_doubled_text_with_a_callback() -> None:
    assert "prompt_embeds" in internals.list_doubled_tensors(tiny.sd_pipeline())
    assert {"prompt_embeds", "add_text_embeds", "add_time_ids"} <= {
        *internals.list_doubled_tensors(tiny.xl_pipeline())
    }
    assert not internals.list_doubled_tensors(object())


@pytest.mark.parametrize("part", ["ControlNetInpaint", "PAG", "Pix2Pix", "XLControlNetUnion"])
def test_there_are_pipelines_of_these_names(part: str) -> None:
    assert any(part in name for name in dir(diffusers) if name.endswith("Pipeline"))


def test_the_settings_of_the_progress_bar_are_copied() -> None:
    source: Any = tiny.sd_pipeline()
    pipe: Any = tiny.sd_pipeline(seed=1)
    source.set_progress_bar_config(disable=True)
    internals.copy_progress_bar(source, pipe)
    assert pipe.progress_bar(range(1)).disable
    internals.copy_progress_bar(object(), pipe)


@pytest.mark.parametrize(("channels", "reported"), [(48, 4), (4, 4), (9, 9)])
def test_an_inpainting_pipelines_unet_reports_four_channels_inside_the_context_only(
    channels: int, reported: int
) -> None:
    base = tiny.sd_pipeline()
    pipe = StableDiffusionInpaintPipeline(**base.components, requires_safety_checker=False)
    pipe.unet.register_to_config(in_channels=channels)
    with internals.report_four_input_channels(pipe):
        assert pipe.unet.config.in_channels == reported
    assert pipe.unet.config.in_channels == channels


def test_other_pipelines_report_what_they_have() -> None:
    pipe = tiny.sd_pipeline()
    pipe.unet.register_to_config(in_channels=48)
    with internals.report_four_input_channels(pipe):
        assert pipe.unet.config.in_channels == 48


def test_layers_inside_a_split_are_found() -> None:
    unet, layer = motion_unet(tiny.sd_unet()), nn.Linear(2, 2)
    assert not internals.find_split_layers(unet, {1: layer})
    unet.split = SplitInferenceModule(layer, 1, 0, ["x"])  # pyright: ignore[reportArgumentType]
    assert internals.find_split_layers(unet, {1: layer, 3: nn.Linear(2, 2)}) == {1}


def test_a_compiled_module_is_known_and_gives_back_its_own() -> None:
    module = nn.Linear(2, 2)
    assert not internals.is_compiled(module)
    assert internals.unwrap_compiled(module) is module
    wrapped = torch.compile(module, backend="eager")
    assert isinstance(wrapped, nn.Module)
    assert internals.is_compiled(wrapped)
    assert internals.unwrap_compiled(wrapped) is module


def test_a_module_compiled_in_place_calls_what_is_set() -> None:
    module = nn.Linear(2, 2)
    module.compile(backend="eager")
    assert internals.is_compiled(module)
    assert internals.get_compiled_call(module) is not None
    internals.set_compiled_call(module, lambda x: "called")
    assert module(torch.zeros(1, 2)) == "called"
