"""Where and when a reference acts: masks and steps, each against an independent computation."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.layers import count_halvings, find_cross_attention_layers
from imprompt.attention.unet_layers import UNetLayers
from imprompt.errors import AttachmentError, InvalidReference
from imprompt.reference import Reference
from showing import STEPS, close, draw_latents, latents, output, ramp, run_unet

pytestmark = pytest.mark.usefixtures("no_grad")


# Masks


def test_a_white_mask_is_no_mask_to_the_last_bit(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    embedding = tiny.embedding(2)
    white = Image.new("L", (30, 20), 255)
    assert torch.equal(
        run_unet(unet, adapter, Reference(embedding, mask=white)),
        run_unet(unet, adapter, Reference(embedding)),
    )


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (6, 10)])
def test_masks_that_partition_the_picture_make_the_whole(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, size: tuple[int, int]
) -> None:
    embedding, sample = tiny.embedding(1), torch.randn(2, 4, *size)
    soft = ramp(37, 53)
    parts = [Reference(embedding, mask=soft), Reference(embedding, mask=1 - soft)]
    close(
        run_unet(unet, adapter, *parts, sample=sample),
        run_unet(unet, adapter, Reference(embedding), sample=sample),
    )


def test_a_mask_is_the_mean_over_each_positions_part_of_the_picture(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    mask, sample = ramp(24, 48), torch.randn(2, 4, 12, 8)
    with adapter.attach(unet) as attachment, adapter.references(Reference(tiny.embedding(1), mask=mask)):
        output(unet, sample=sample)
        layers = cast(UNetLayers, attachment.layers)
        for layer, processor in layers.terms.items():
            height, width = {0: (12, 8), 1: (6, 4)}[layers.levels[layer]]
            blocks = mask.reshape(height, 24 // height, width, 48 // width)
            (term,) = processor.state.terms
            assert term.weight is not None
            close(term.weight, blocks.mean((1, 3)).reshape(1, 1, -1, 1).expand(2, 1, -1, 1))


def keep_length(seen: dict[str, int], name: str, module: object, args: tuple[Tensor, ...]) -> None:
    seen[name] = args[0].shape[1]


def test_the_levels_of_layers_are_those_of_the_latents_that_reach_them(unet: UNet2DConditionModel) -> None:
    seen: dict[str, int] = {}
    for name, attn in find_cross_attention_layers(unet).values():
        attn.register_forward_pre_hook(functools.partial(keep_length, seen, name))
    output(unet, sample=torch.randn(2, 4, 12, 8))
    assert seen == {name: (12 >> count_halvings(name, 2)) * (8 >> count_halvings(name, 2)) for name in seen}
    assert len(set(seen.values())) == 2


def test_a_mask_is_resized_once_for_each_resolution(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    with (
        patch.object(F, "adaptive_avg_pool2d", wraps=F.adaptive_avg_pool2d) as resize,
        adapter.attach(unet),
        adapter.references(Reference(tiny.embedding(1), mask=ramp(30, 30))),
    ):
        for _ in range(3):
            output(unet)
    assert resize.call_count == 2


def test_where_the_mask_is_black_a_layer_gives_what_it_gives_without_images(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    name, attn = find_cross_attention_layers(unet)[1]
    hidden, text = torch.randn(2, 64, 16), torch.randn(2, 7, tiny.SD_CONTEXT)
    before = attn(hidden, encoder_hidden_states=text).reshape(2, 8, 8, 16)
    reference = Reference(tiny.embedding(1), mask=left)
    with adapter.attach(unet), adapter.references(reference):
        output(unet)
        after = attn(hidden, encoder_hidden_states=text).reshape(2, 8, 8, 16)
    assert torch.equal(after[:, :, 4:], before[:, :, 4:]), name
    assert (after[:, :, :4] - before[:, :, :4]).abs().min(-1).values.max() > 1e-3


def test_every_prompt_has_its_own_mask(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    references = [Reference(tiny.embedding(1, seed=seed), mask=mask) for seed, mask in
                  [(0, ramp(9, 9)), (1, None)]]  # fmt: skip
    together = run_unet(unet, adapter, references)
    for row, reference in enumerate(references):
        close(together[row], run_unet(unet, adapter, reference)[row])


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(4, 4), "black all over"),
        (torch.full((4, 4), 1.5), "from 0 to 1, not 1.5"),
        (torch.full((4, 4), float("nan")), "from 0 to 1"),
        (torch.ones(1, 4, 4), "must have shape"),
        (Image.new("L", (5, 5), 0), "black all over"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask: Any, sentence: str) -> None:
    with pytest.raises(InvalidReference, match=sentence):
        Reference(tiny.embedding(1), mask=mask)


def test_a_transparent_mask_is_black_where_it_is_transparent() -> None:
    mask = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    mask.putpixel((1, 2), (255, 255, 255, 255))
    area = Reference(tiny.embedding(1), mask=mask).area
    assert area is not None
    assert area.nonzero().tolist() == [[2, 1]]


# Steps


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_two_halves_of_the_steps_make_the_whole_to_the_last_bit(
    pipe: Any, adapter: ImagePromptAdapter, steps: int
) -> None:
    embedding = tiny.embedding(1)
    halves = [Reference(embedding, end=0.5), Reference(embedding, start=0.5)]
    whole = draw_latents(pipe, adapter, Reference(embedding), num_inference_steps=steps)
    assert torch.equal(draw_latents(pipe, adapter, *halves, num_inference_steps=steps), whole)


def test_steps_that_are_off_are_the_base_models_to_the_last_bit(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    seen: dict[str, list[Tensor]] = {"base": [], "ours": []}

    def keep(name: str) -> Callable[..., dict[str, Any]]:
        return lambda pipe, step, time, tensors: seen[name].append(tensors["latents"]) or tensors

    latents(pipe, callback_on_step_end=keep("base"))
    draw_latents(pipe, adapter, Reference(tiny.embedding(1), start=0.5), callback_on_step_end=keep("ours"))
    same = [torch.equal(a, b) for a, b in zip(seen["base"], seen["ours"], strict=True)]
    assert same == [True, True, False, False]


def test_a_list_of_steps_multiplies_the_scale(pipe: Any, adapter: ImagePromptAdapter) -> None:
    embedding, weights = tiny.embedding(1), [1.0, 0.0, 0.5, 0.25]
    listed = draw_latents(pipe, adapter, Reference(embedding, scale=0.8, step_weights=weights))
    with adapter.attach(pipe):
        adapter.references(Reference(embedding, scale=0.8))

        def change(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            adapter.references(Reference(embedding, scale=0.8 * ([*weights, 0])[step + 1]))
            return tensors

        by_hand = latents(pipe, callback_on_step_end=change)
    close(listed, by_hand)


def test_a_list_of_another_length_than_the_steps_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(InvalidReference, match="there are 3 step_weights for 4 steps"):
        draw_latents(pipe, adapter, Reference(tiny.embedding(1), step_weights=[1.0, 0.5, 0.25]))


@pytest.mark.parametrize("end", [0.1, 0.5, 0.6, 1.0])
def test_noise_is_measured_along_the_timesteps_of_training(
    pipe: Any, adapter: ImagePromptAdapter, end: float
) -> None:
    fractions = [1 - t / 999 for t in (751, 501, 251, 1)]
    weights = [float(fraction < end or end == 1) for fraction in fractions]
    by_noise = Reference(tiny.embedding(1), end=end, measured_in="noise")
    when: Any = {"step_weights": weights} if any(weights) else {"scale": 0}
    by_hand = Reference(tiny.embedding(1), **when)
    assert torch.equal(draw_latents(pipe, adapter, by_noise), draw_latents(pipe, adapter, by_hand))
    assert torch.equal(pipe.scheduler.timesteps, torch.tensor([751, 501, 251, 1]))


def test_image_to_image_counts_the_steps_that_it_makes(pipe: Any, adapter: ImagePromptAdapter) -> None:
    img2img: Any = AutoPipelineForImage2Image.from_pipe(pipe)
    settings: dict[str, Any] = {"image": tiny.picture(width=16, height=16), "strength": 0.5,
                                "num_inference_steps": 8}  # fmt: skip
    two_of_four = Reference(tiny.embedding(1), step_weights=[1.0, 1.0, 0.0, 0.0])
    listed = draw_latents(img2img, adapter, two_of_four, **settings)
    halved = draw_latents(img2img, adapter, Reference(tiny.embedding(1), end=0.5), **settings)
    assert torch.equal(listed, halved)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_a_scheduler_of_second_order_makes_more_steps_than_asked_for(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    calls = 2 * STEPS - 1
    weights = [1.0] * 3 + [0.0] * (calls - 3)
    listed = draw_latents(pipe, adapter, Reference(tiny.embedding(1), step_weights=weights))
    ranged = draw_latents(pipe, adapter, Reference(tiny.embedding(1), end=3 / calls))
    assert torch.equal(listed, ranged)
    assert not torch.equal(listed, draw_latents(pipe, adapter, Reference(tiny.embedding(1))))


def test_the_next_generation_starts_from_step_0_even_after_an_exception(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    def stop(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        raise RuntimeError("stopped")

    reference = Reference(tiny.embedding(1), step_weights=[1.0, 0.0, 0.5, 0.0])
    alone = draw_latents(pipe, adapter, reference)
    with adapter.attach(pipe), adapter.references(reference):
        with pytest.raises(RuntimeError, match="stopped"):
            latents(pipe, callback_on_step_end=stop)
        assert torch.equal(latents(pipe), alone)
        assert torch.equal(latents(pipe), alone)


def test_steps_on_a_bare_unet_are_refused(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(AttachmentError, match="start, end and step_weights need a pipeline"):
        run_unet(unet, adapter, Reference(tiny.embedding(1), end=0.5))


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "start and end must be 0 ≤ start < end ≤ 1, not 0.5 and 0.5"),
        ({"start": 0.7, "end": 0.2}, "not 0.7 and 0.2"),
        ({"start": -0.1}, "not -0.1 and 1.0"),
        ({"end": 1.1}, "not 0.0 and 1.1"),
        ({"end": "half"}, "end must be a finite number, not 'half'"),
        ({"step_weights": []}, "all step_weights are 0"),
        ({"step_weights": [0.0, 0.0]}, "all step_weights are 0"),
        ({"step_weights": ["a"]}, "each of step_weights must be a finite number, not 'a'"),
        ({"step_weights": [1.0], "end": 0.5}, "step_weights replaces start, end and measured_in"),
        ({"step_weights": [1.0], "measured_in": "noise"}, "step_weights replaces start, end and measured_in"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_schedule_that_cannot_be_is_refused(when: Any, message: str) -> None:
    with pytest.raises(InvalidReference, match=message):
        Reference(tiny.embedding(1), **when)


def test_the_deprecated_steps_are_start_and_end_or_step_weights() -> None:
    with pytest.warns(DeprecationWarning, match="use start and end, or step_weights"):
        span = Reference(tiny.embedding(1), steps=(0.2, 0.5))
    with pytest.warns(DeprecationWarning, match="use start and end, or step_weights"):
        listed = Reference(tiny.embedding(1), steps=[1.0, 0.5])
    assert (span.start, span.end, span.step_weights) == (0.2, 0.5, None)
    assert (listed.start, listed.end, listed.step_weights) == (0, 1, [1.0, 0.5])
    assert replace(span, scale=0.5).end == 0.5


@pytest.mark.parametrize("when", [{"steps": (0.0, 0.5, 1.0)}, {"steps": (0.2, 0.5), "end": 0.7}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("unchecked")
def test_deprecated_steps_that_cannot_be_are_refused(when: Any) -> None:
    with pytest.raises(InvalidReference, match="steps"):
        Reference(tiny.embedding(1), **when)
