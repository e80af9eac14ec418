"""A script of diffusers' IP-Adapter makes the same picture after `imprompt.compat.enable`.

Tolerance 1e-5 absolute, float32, on latents that reach ±10, with the same random weights.
"""

from typing import Any

import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

import adapter_files
import tiny
from compat_scripts import (
    ONE,
    TWO,
    Script,
    assert_differ,
    assert_unchanged,
    latents,
    load,
    load_base,
    run_in_imprompt,
    sd,
    seeded_embeddings,
    stack,
    xl,
)
from tiny_pipelines import CASES, Case

GUIDANCE = pytest.mark.parametrize("guidance_scale", [1.0, 3.0])

HALF = Image.new("L", (16, 16))
HALF.paste(255, (0, 0, 9, 16))
OTHER_HALF = Image.eval(HALF, lambda value: 255 - value)


# Variants


@tiny.seeded
def sd_with_257_features(*, seed: int = 0) -> Any:
    """As many features as the published Full-Face adapter takes, which its tensors do not tell."""
    pipe, config = sd(), tiny.vision_model().config
    config.image_size, config.patch_size = 32, 2
    size = {"height": 32, "width": 32}
    encoder = CLIPVisionModelWithProjection(config).eval()
    pipe.register_modules(
        image_encoder=encoder, feature_extractor=CLIPImageProcessorPil(size=size, crop_size=size)
    )
    return pipe


@pytest.mark.parametrize(
    ("variant", "make"),
    [("base", sd), ("base", xl), ("plus", sd), ("plus", xl), ("full-face", sd_with_257_features)],
)
def test_a_picture_with_every_variant_that_takes_one(variant: str, make: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load(pipe, adapter_files.adapter(pipe.unet, variant))
        pipe.set_ip_adapter_scale(0.6)
        return latents(pipe, ip_adapter_image=ONE)

    assert_unchanged(make, script)


@tiny.seeded
def faces(count: int, *, seed: int = 0) -> Tensor:
    """As the documentation of diffusers stacks them: "2 faces 1 dim", the negative ones first."""
    found = torch.randn(1, count, 1, adapter_files.FACE)
    return torch.cat([torch.zeros_like(found), found])


@pytest.mark.parametrize(("variant", "make"), [("faceid", sd), ("faceid", xl), ("faceid-portrait", sd)])
def test_face_embeddings_with_faceid_and_its_lora(variant: str, make: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load(pipe, adapter_files.adapter(pipe.unet, variant))
        pipe.set_ip_adapter_scale(0.7)
        return latents(pipe, ip_adapter_image_embeds=[faces(2)])

    assert_unchanged(make, script)


@pytest.mark.parametrize(("version", "make"), [(1, sd), (2, xl)])
def test_faceid_plus_with_features_on_the_projection(version: int, make: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load(pipe, adapter_files.adapter(pipe.unet, "faceid-plus"))
        features = pipe.prepare_ip_adapter_image_embeds([[ONE]], None, torch.device("cpu"), 2, True)[0]
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        projection.clip_embeds = features
        projection.shortcut = version == 2
        projection.shortcut_scale = 1.7
        return latents(pipe, ip_adapter_image_embeds=[faces(1)], num_images_per_prompt=2)

    assert_unchanged(make, script)


# Calls


@pytest.mark.parametrize(
    ("images", "guidance_scale", "make"),
    [(ONE, 3.0, sd), (ONE, 1.0, xl), ([ONE], 1.0, sd), ([[ONE, TWO]], 3.0, sd), ([[ONE, TWO]], 1.0, xl)],
)
def test_one_picture_a_list_of_one_and_a_list_of_lists(images: Any, guidance_scale: float, make: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        return latents(pipe, ip_adapter_image=images, guidance_scale=guidance_scale)

    assert_unchanged(make, script)


@GUIDANCE
def test_several_prompts_and_several_pictures_of_each(guidance_scale: float) -> None:
    batch = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2, "guidance_scale": guidance_scale}

    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        return latents(pipe, ip_adapter_image=ONE, **batch)

    assert_unchanged(sd, script)


@pytest.mark.parametrize(("scale", "make"), [([0.4, 0.9], sd), ([0.0, 0.7], xl)])
def test_two_adapters_with_a_picture_each(scale: list[float], make: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load_base(pipe, 0, 9)
        pipe.set_ip_adapter_scale(scale)
        return latents(pipe, ip_adapter_image=[ONE, [ONE, TWO]])

    assert_unchanged(make, script)


def test_two_adapters_of_different_variants() -> None:
    def script(pipe: Any) -> Tensor:
        load(pipe, tiny.adapter(pipe.unet), adapter_files.adapter(pipe.unet, "plus"))
        pipe.set_ip_adapter_scale([0.7, 0.3])
        return latents(pipe, ip_adapter_image=[ONE, TWO])

    assert_unchanged(sd, script)


@pytest.mark.parametrize(("seeds", "guidance_scale"), [((1,), 3.0), ((1, 2), 3.0), ((1, 2), 1.0)])
def test_precomputed_embeddings(seeds: tuple[int, ...], guidance_scale: float) -> None:
    embeddings = stack(seeded_embeddings(seeds), guidance_scale > 1)

    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        return latents(pipe, ip_adapter_image_embeds=[embeddings], guidance_scale=guidance_scale)

    assert_unchanged(sd, script)


def test_embeddings_that_the_pipeline_prepares_are_those_of_diffusers() -> None:
    def script(pipe: Any) -> Tensor:
        load(pipe, tiny.adapter(pipe.unet), adapter_files.adapter(pipe.unet, "plus"))
        embeds = pipe.prepare_ip_adapter_image_embeds([ONE, [ONE, TWO]], None, torch.device("cpu"), 1, True)
        return latents(pipe, ip_adapter_image_embeds=embeds)

    assert_unchanged(sd, script)


# Scales

DOWN, UP = {"down": {"block_0": [0.8]}}, {"up": {"block_1": [0.0, 0.9]}}
XL_UP = {"up": {"block_0": [0.3, 1.0]}, "mid": 0.5}


@pytest.mark.parametrize("scale", [UP, {"mid": [0.7], **DOWN}, [{"up": 0.5}]])
def test_a_dictionary_of_blocks(scale: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        pipe.set_ip_adapter_scale(scale)
        return latents(pipe, ip_adapter_image=ONE)

    assert_unchanged(sd, script)


@pytest.mark.parametrize("scale", [XL_UP, {"up": [0.2, 0.9], "down": {"block_1": 0.4}}])
def test_a_dictionary_of_blocks_that_have_several_layers(scale: Any) -> None:
    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        pipe.set_ip_adapter_scale(0.3)
        pipe.set_ip_adapter_scale(scale)
        return latents(pipe, ip_adapter_image=ONE)

    assert_unchanged(xl, script)


def test_a_dictionary_for_each_of_two_adapters() -> None:
    def script(pipe: Any) -> Tensor:
        load_base(pipe, 0, 9)
        pipe.set_ip_adapter_scale([DOWN, UP])
        return latents(pipe, ip_adapter_image=[ONE, TWO])

    assert_unchanged(sd, script)


def test_the_scale_zero_is_the_base_model_bit_for_bit() -> None:
    pipe = sd()
    plain = latents(pipe)

    def script(pipe: Any) -> Tensor:
        load_base(pipe)
        pipe.set_ip_adapter_scale(0)
        return latents(pipe, ip_adapter_image=ONE)

    assert torch.equal(run_in_imprompt(pipe, script), plain)


# Masks


def masks(*pictures: Image.Image) -> Tensor:
    return IPAdapterMaskProcessor(vae_scale_factor=2).preprocess([*pictures], height=16, width=16)


def script_with_masks(images: Any, given: Any, scale: Any = 0.8, seeds: tuple[int, ...] = (0,)) -> Script:
    def script(pipe: Any) -> Tensor:
        load_base(pipe, *seeds)
        pipe.set_ip_adapter_scale(scale)
        return latents(pipe, ip_adapter_image=images, cross_attention_kwargs={"ip_adapter_masks": given})

    return script


@pytest.mark.parametrize("make", [sd, xl])
def test_a_mask_for_each_of_two_adapters(make: Any) -> None:
    each = [masks(HALF), masks(OTHER_HALF)]
    assert_unchanged(make, script_with_masks([ONE, TWO], each, [0.7, 0.9], (0, 9)))


@pytest.mark.parametrize("scale", [0.8, [[0.0, 0.7]]])
def test_masks_and_scales_for_the_pictures_of_one_adapter(scale: Any) -> None:
    both = masks(HALF, OTHER_HALF).transpose(0, 1)
    assert_unchanged(sd, script_with_masks([[ONE, TWO]], [both], scale))


def test_a_mask_for_one_of_two_adapters() -> None:
    assert_unchanged(sd, script_with_masks([ONE, TWO], [None, masks(HALF)], [0.7, 0.9], (0, 9)))


def test_masks_as_one_tensor() -> None:
    both = masks(HALF, OTHER_HALF)
    assert_unchanged(sd, script_with_masks([ONE, TWO], both, [0.7, 0.9], (0, 9)))


# Pipelines

NAMES = {
    "SD1.5, text-to-image",
    "SD1.5, image-to-image",
    "SD1.5, inpainting, 9 channels",
    "SD1.5, ControlNet",
    "SD1.5, LCM",
    "SD1.5, PAG",
    "SD1.5, InstructPix2Pix",
    "SD1.5, AnimateDiff, PAG",
    "SDXL, inpainting, 4 channels",
    "SDXL, ControlNet",
    "SDXL, T2I-Adapter",
    "SDXL, AnimateDiff",
    "Kolors, text-to-image",
}
SHOWN = [case for case in CASES if str(case) in NAMES]


def test_every_pipeline_is_there() -> None:
    assert {str(case) for case in SHOWN} == NAMES


@pytest.mark.parametrize("case", SHOWN, ids=str)
def test_a_pipeline(case: Case) -> None:
    def script(pipe: Any) -> Tensor:
        load(pipe, tiny.adapter(pipe.unet), adapter_files.adapter(pipe.unet, "plus"))
        pipe.set_ip_adapter_scale([0.7, 0.4])
        return case.latents(pipe, ip_adapter_image=[ONE, TWO])

    assert_differ(assert_unchanged(case.build, script), case.latents(case.build()))
