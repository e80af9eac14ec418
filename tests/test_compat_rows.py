"""Embeddings and masks of batches after `imprompt.compat.enable`: right where diffusers mixes, or refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import adapter_files
import tiny
from compat_scripts import ONE, TWO, assert_close, assert_differ, latents, load, load_base, sd, stack
from imprompt import compat
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError, InvalidReference
from test_compat import HALF, OTHER_HALF, masks
from tiny_pipelines import CASES

FIRST, SECOND = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)
PROMPTS = ["a cat", "a dog"]


@pytest.fixture
def pipe() -> Iterator[Any]:
    pipe = sd()
    compat.enable(pipe)
    load_base(pipe)
    yield pipe
    compat.disable(pipe)


def alone(pipe: Any, row: int, **arguments: Any) -> Tensor:
    """The picture of one prompt of the batch."""
    generator = torch.Generator().manual_seed(row)
    return latents(pipe, prompt=PROMPTS[row], generator=generator, **arguments)


def for_prompts(*embeddings: Tensor, guided: bool) -> Tensor:
    positive = torch.stack(embeddings)
    return torch.cat([torch.zeros_like(positive), positive]) if guided else positive


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_each_prompt_of_a_batch_may_have_its_own_embedding(pipe: Any, guidance_scale: float) -> None:
    guided, settings = guidance_scale > 1, {"guidance_scale": guidance_scale}
    embeds = [for_prompts(FIRST, SECOND, guided=guided)]
    batch = latents(pipe, prompt=PROMPTS, ip_adapter_image_embeds=embeds, **settings)
    for row, embedding in enumerate((FIRST, SECOND)):
        one = alone(pipe, row, ip_adapter_image_embeds=[stack(embedding, guided)], **settings)
        assert_close(batch[row : row + 1], one)


def test_each_prompt_may_have_its_own_and_several_pictures(pipe: Any) -> None:
    embeds = [for_prompts(FIRST, SECOND, guided=True)]
    batch = latents(pipe, prompt=PROMPTS, num_images_per_prompt=2, ip_adapter_image_embeds=embeds)
    generator = torch.Generator().manual_seed(3)
    last = latents(pipe, prompt="a dog", generator=generator, ip_adapter_image_embeds=[stack(SECOND)])
    assert_close(batch[3:], last)


def halve(pipe: Any, step: int, _: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stop guidance after the first step, as `SDCFGCutoffCallback` does."""
    if step == 0:
        pipe._guidance_scale = 0.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
    return tensors


@pytest.mark.parametrize("number", [1, 2])
def test_guidance_may_be_switched_off_part_way(pipe: Any, number: int) -> None:
    prompts, embeddings = PROMPTS[:number], (FIRST, SECOND)[:number]
    settings = {
        "prompt": prompts,
        "callback_on_step_end": halve,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    embeds = [for_prompts(*embeddings, guided=True)]
    ours = latents(pipe, ip_adapter_image_embeds=embeds, **settings)
    compat.disable(pipe)
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.references([*embeddings]):
        assert_close(ours, latents(pipe, **settings))
    compat.enable(pipe)


@pytest.mark.parametrize(
    ("embeds", "settings", "message"),
    [
        (stack(FIRST), {"guidance_scale": 1.0}, "2 rows for 1 prompts; give one row, and no negative"),
        (
            stack(FIRST),
            {"guidance_scale": 1.0, "prompt": PROMPTS},
            "a negative row of zeros, but guidance is",
        ),
        (
            for_prompts(FIRST, SECOND, FIRST, guided=True),
            {},
            "3 rows for 1 prompts; give one row, and as many",
        ),
        (
            for_prompts(*[FIRST] * 3, guided=True),
            {"prompt": PROMPTS},
            "give one row, or 2, one for each prompt",
        ),
    ],
)
def test_embeddings_that_do_not_fit_the_batch_are_refused(
    pipe: Any, embeds: Tensor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(AmbiguousBatch, match=message):
        latents(pipe, ip_adapter_image_embeds=[embeds], **settings)


@pytest.mark.parametrize(
    ("embeds", "error", "message"),
    [
        ([stack(FIRST)] * 2, InvalidReference, "has 2 tensors for 1 adapters"),
        ([stack(FIRST[:, :9])], AdapterMismatch, "takes image_embedding 14 wide, not image_embedding 9 wide"),
        (
            [torch.ones(2, 1, 5, 14)],
            AdapterMismatch,
            r"of shape \(rows, images, width\), not \(2, 1, 5, 14\)",
        ),
    ],
)
def test_embeddings_of_another_kind_are_refused(
    pipe: Any, embeds: list[Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        latents(pipe, ip_adapter_image_embeds=embeds)


def test_faceid_plus_without_features_says_where_they_belong(pipe: Any) -> None:
    load(pipe, adapter_files.adapter(pipe.unet, "faceid-plus"))
    with pytest.raises(AdapterMismatch, match=r"image_projection_layers\[i\]\.clip_embeds"):
        latents(pipe, ip_adapter_image_embeds=[torch.ones(2, 1, adapter_files.FACE)])


def test_a_denoiser_that_is_called_by_hand_has_a_row_for_each_of_its_batch(pipe: Any) -> None:
    call: dict[str, Any] = tiny.unet_input(pipe.unet, batch=2)
    with torch.no_grad():
        both = pipe.unet(**call, added_cond_kwargs={"image_embeds": [torch.stack([FIRST, SECOND])]}).sample
        one = {name: value[1:] for name, value in call.items()}
        second = pipe.unet(**one, added_cond_kwargs={"image_embeds": [SECOND[None]]}).sample
        assert_close(both[1:], second)
        with pytest.raises(AmbiguousBatch, match="by a pipeline that imprompt does not know"):
            pipe.unet(**call, added_cond_kwargs={"image_embeds": [SECOND[None]]})


def test_instruct_pix2pix_takes_embeddings() -> None:
    """diffusers drops them (huggingface/diffusers, issue 7799)."""
    case = next(case for case in CASES if str(case) == "SD1.5, InstructPix2Pix")
    pipe = case.build()
    compat.enable(pipe)
    load_base(pipe)
    pixels = pipe.feature_extractor(ONE, return_tensors="pt").pixel_values
    positive = pipe.image_encoder(pixels).image_embeds.detach()[None]
    zeros = torch.zeros_like(positive)
    ours = case.latents(pipe, ip_adapter_image_embeds=[torch.cat([positive, zeros, zeros])])
    assert_close(ours, case.latents(pipe, ip_adapter_image=ONE))
    compat.disable(pipe)
    assert_differ(ours, case.latents(pipe))


# Masks


def draw_masked(pipe: Any, given: Any, **arguments: Any) -> Tensor:
    return latents(pipe, cross_attention_kwargs={"ip_adapter_masks": given}, **arguments)


def test_each_prompt_may_have_its_own_mask(pipe: Any) -> None:
    batch = draw_masked(pipe, [masks(HALF, OTHER_HALF)], prompt=PROMPTS, ip_adapter_image=ONE)
    for row, half in enumerate((HALF, OTHER_HALF)):
        generator = torch.Generator().manual_seed(row)
        one = draw_masked(pipe, [masks(half)], prompt=PROMPTS[row], generator=generator, ip_adapter_image=ONE)
        assert_close(batch[row : row + 1], one)


def test_masks_of_two_pictures_may_be_given_as_the_processor_returns_them(pipe: Any) -> None:
    both = masks(HALF, OTHER_HALF)
    expected = draw_masked(pipe, [both.transpose(0, 1)], ip_adapter_image=[[ONE, TWO]])
    for given in ([both], both):
        assert torch.equal(draw_masked(pipe, given, ip_adapter_image=[[ONE, TWO]]), expected)


def test_a_mask_of_other_proportions_covers_the_whole_picture(pipe: Any) -> None:
    """Bicubic resizing treats the axes apart, so a mask that is the same in every row may have any height."""
    tall = masks(HALF)[:, :, :1].expand(-1, -1, 64, -1)
    assert_close(
        draw_masked(pipe, [tall], ip_adapter_image=ONE),
        draw_masked(pipe, [masks(HALF)], ip_adapter_image=ONE),
    )


@pytest.mark.parametrize(
    ("given", "scale", "images", "error", "message"),
    [
        (None, [[0.5, 0.7]], [[ONE, TWO]], InvalidReference, "needs ip_adapter_masks"),
        ([masks(HALF)], 0.5, [[ONE, TWO]], InvalidReference, "1 masks for 2 pictures"),
        ([masks(HALF)], [[0.5, 0.7]], ONE, InvalidReference, "2 scales are given for 1 pictures"),
        ([masks(HALF)] * 2, 0.5, ONE, InvalidReference, "the masks of each of 1 adapters"),
        (["left"], 0.5, ONE, InvalidReference, r"must be a tensor \(1, pictures, height, width\)"),
        ([masks(HALF, HALF, HALF)], 0.5, ONE, AmbiguousBatch, "have 3 rows for a batch of 2"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    pipe: Any, given: Any, scale: Any, images: Any, error: type[Exception], message: str
) -> None:
    pipe.set_ip_adapter_scale(scale)
    with pytest.raises(error, match=message):
        draw_masked(pipe, given, ip_adapter_image=images)


def test_a_processor_that_replaces_the_layers_is_noticed(pipe: Any) -> None:
    pipe.enable_attention_slicing()
    with pytest.raises(AttachmentError, match="was given another processor"):
        latents(pipe, ip_adapter_image=ONE)
    pipe.disable_attention_slicing()
