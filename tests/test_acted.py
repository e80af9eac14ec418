"""What is attached must have acted: whatever takes the place of a layer's attention is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.unets.unet_motion_model import MotionAdapter
from diffusers.pipelines.animatediff.pipeline_animatediff import AnimateDiffPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn

import tiny
from imprompt.errors import AmbiguousBatch, AttachmentError
from imprompt.reference import Reference
from showing import latents
from slow_rows import mark_slow


def crossing(pipe: Any) -> list[Any]:
    return [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]


def own_forward(attn: Any) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        return attn.to_out[0](attn.to_q(hidden_states))

    return forward


def replace_all(pipe: Any) -> None:
    for attn in crossing(pipe):
        attn.forward = own_forward(attn)


def replace_one(pipe: Any) -> None:
    attn = crossing(pipe)[-1]
    attn.forward = own_forward(attn)


def replace_module(pipe: Any) -> None:
    class Another(nn.Module):
        def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
            return hidden_states

    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2 = Another()


def replace_block(pipe: Any) -> None:
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
    block.forward = lambda hidden_states, *args, **kwargs: hidden_states


def give_processors(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor2_0())


CHANGES = {
    replace_all: r"layer 1 .*own_forward.<locals>.forward has taken the place of its forward",
    replace_one: r"did not reach layer \d .*own_forward",
    replace_module: r"layer 7 .*mid_block.*: it was not run",
    replace_block: r"layer 7 .*mid_block.*: it was not run",
    give_processors: r"was given another processor \(AttnProcessor2_0\).*on every call",
}


def attached_to(kind: Any) -> tuple[Any, Any]:
    pipe = kind(**tiny.sd_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, tiny.adapter(pipe.unet)


@pytest.mark.parametrize(("change", "sentence"), CHANGES.items())
@pytest.mark.parametrize("when", ["before references", "after references", "on every call"])
def test_what_takes_the_place_of_a_layer_is_named(change: Any, sentence: str, when: str) -> None:
    class Pipeline(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if when == "on every call":
                change(self)
            return super().__call__(*args, **kwargs)

    pipe, adapter = attached_to(Pipeline)

    def draw() -> None:
        with adapter.references(tiny.embedding(1)):
            if when == "after references":
                change(pipe)
            latents(pipe)

    with adapter.attach(pipe):
        if when == "before references":
            change(pipe)
        with pytest.raises(AttachmentError, match=sentence):
            draw()


def test_a_layer_in_which_the_reference_does_nothing_may_be_replaced() -> None:
    pipe, adapter = attached_to(StableDiffusionPipeline)
    reference = Reference(tiny.embedding(1), layers={"down": 1.0})
    replace_block(pipe)
    base = latents(pipe)
    with adapter.attach(pipe), adapter.references(reference):
        assert not torch.equal(latents(pipe), base)


def test_a_replacement_in_the_middle_of_a_notebook_is_noticed_in_the_next_generation() -> None:
    pipe, adapter = attached_to(StableDiffusionPipeline)
    with adapter.attach(pipe):
        with adapter.references(tiny.embedding(1)):
            latents(pipe)
        replace_all(pipe)
        with adapter.references(tiny.embedding(1)), pytest.raises(AttachmentError, match="did not reach"):
            latents(pipe)


def test_pictures_of_another_unet_are_noticed_when_the_references_end() -> None:
    pipe, adapter = attached_to(StableDiffusionPipeline)

    def draw() -> None:
        with adapter.references(tiny.embedding(1)):
            pipe.unet = tiny.sd_unet(seed=9)
            latents(pipe)

    with adapter.attach(pipe), pytest.raises(AttachmentError, match="another U-Net than before"):
        draw()


# A layer that sees a part of the batch


def video(split: int | None, scale: Any = 0.7, mask: Any = None) -> Tensor:
    torch.manual_seed(0)
    motion = MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=8, motion_max_seq_length=4,
    )  # fmt: skip
    parts = {name: part for name, part in tiny.sd_pipeline().components.items() if name != "safety_checker"}
    pipe: Any = AnimateDiffPipeline(**parts, motion_adapter=motion)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_free_noise(context_length=4, context_stride=2)
    if split:
        pipe.enable_free_noise_split_inference(spatial_split_size=split, temporal_split_size=2)
    adapter = tiny.adapter(pipe.unet)
    references = [Reference(tiny.embedding(1, seed=i), scale=scale, mask=mask) for i in range(8)]
    arguments: Any = {"num_frames": 8, "num_inference_steps": 2, "output_type": "latent"}
    with adapter.attach(pipe), adapter.references(references):
        return pipe("a cat", generator=torch.Generator().manual_seed(0), **arguments).frames


@pytest.mark.parametrize("split", mark_slow((1, 2, 3, 8, 16), quick=(3, 16)))
def test_split_inference_gives_each_frame_its_own_reference_as_without(split: int) -> None:
    mask = torch.linspace(0, 1, 16).reshape(4, 4)
    torch.testing.assert_close(video(split, mask=mask), video(None, mask=mask), rtol=1e-4, atol=1e-4)


def test_a_part_of_the_batch_in_any_other_way_is_refused() -> None:
    pipe, adapter = attached_to(StableDiffusionPipeline)
    block = pipe.unet.mid_block.attentions[0]
    whole = block.forward

    def in_two(hidden_states: Tensor, encoder_hidden_states: Tensor, **settings: Any) -> tuple[Tensor]:
        halves = zip(hidden_states.chunk(2), encoder_hidden_states.chunk(2), strict=True)
        return (torch.cat([whole(*half, **settings | {"return_dict": False})[0] for half in halves]),)

    block.forward = in_two
    with (
        adapter.attach(pipe),
        adapter.references(tiny.embedding(1)),
        pytest.raises(AmbiguousBatch, match=r"given a part of the batch only .split inference"),
    ):
        latents(pipe)
