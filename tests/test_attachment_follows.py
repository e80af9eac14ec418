"""What people do to a pipeline before or after attaching: right, or refused by one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from compat_scripts import assert_close, assert_differ, latents
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import AdapterMismatch, AttachmentError
from imprompt.projection import LinearProjection

REFERENCE = tiny.embedding(1)


@pytest.fixture
def pipe() -> Any:
    return tiny.sd_pipeline()


def draw_after_change(pipe: Any, change: Callable[[Any], object], *, before: bool) -> Tensor:
    """Attach, change the pipeline before or after that, and return the latents."""
    adapter = tiny.adapter(pipe.unet)
    if before:
        change(pipe)
    with adapter.attach(pipe), adapter.references(REFERENCE):
        if not before:
            latents(pipe)
            change(pipe)
        return latents(pipe)


@tiny.seeded
def add_lora(pipe: Any, *, seed: int = 3) -> None:
    """A LoRA of the user, as `load_lora_weights` puts it there."""
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)


class Int8Linear(nn.Module):
    """A quantized layer; as in torch's own dynamic one, `weight` and `bias` are methods."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.step = float(weight.abs().max()) / 127
        self.register_buffer("packed", (weight / self.step).round().to(torch.int8))
        self.register_buffer("offset", None if linear.bias is None else linear.bias.detach())

    def weight(self) -> Tensor:
        return self.get_buffer("packed")

    def bias(self) -> Any:
        return self.offset

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight().to(x) * self.step, self.bias())


def quantize(pipe: Any) -> None:
    """Quantize all linear layers of the attentions."""
    for module in pipe.unet.modules():
        if isinstance(module, Attention):
            for name in ("to_q", "to_k", "to_v"):
                setattr(module, name, Int8Linear(getattr(module, name)))
            assert isinstance(module.to_out, nn.ModuleList)
            module.to_out[0] = Int8Linear(module.to_out[0])  # pyright: ignore[reportArgumentType]


def dequantize(pipe: Any) -> None:
    """Plain layers with the weights that quantizing leaves."""
    quantize(pipe)
    for module in [*pipe.unet.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, Int8Linear):
                plain = nn.Linear(*reversed(child.weight().shape), bias=child.bias() is not None)
                with torch.no_grad():
                    plain.weight.copy_(child.weight() * child.step)
                    if child.bias() is not None:
                        plain.bias.copy_(child.bias())
                setattr(module, name, plain)


@pytest.mark.parametrize("change", [add_lora, quantize, lambda pipe: pipe.to(torch.float64)])
def test_a_change_of_the_layers_is_the_same_before_and_after_attaching(change: Any) -> None:
    """To rounding: a base that is float64 from the start has its K' and V' computed in float64 too."""
    first, second = (draw_after_change(tiny.sd_pipeline(), change, before=before) for before in (True, False))
    assert_close(first, second)


@pytest.mark.parametrize("processor", [None, AttnProcessor])
def test_a_quantized_base_is_the_base_with_the_rounded_weights(processor: Any) -> None:
    made: list[Tensor] = []
    for change in (quantize, dequantize):
        pipe: Any = tiny.sd_pipeline()
        if processor:
            pipe.unet.set_attn_processor(processor())
        made.append(draw_after_change(pipe, change, before=True))
    assert_close(*made)


def test_a_new_adapter_cannot_start_from_a_quantized_base(pipe: Any) -> None:
    quantize(pipe)
    projection = LinearProjection(tiny.EMBEDDING_DIM, tiny.SD_CONTEXT)
    with pytest.raises(
        AdapterMismatch, match="Int8Linear has no plain weight; make the adapter from the base"
    ):
        ImagePromptAdapter.for_unet(pipe.unet, projection)


def test_projections_fused_after_attaching_are_refused_until_they_are_unfused(pipe: Any) -> None:
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.references(REFERENCE):
        before = latents(pipe)
        pipe.fuse_qkv_projections(vae=False)
        with pytest.raises(
            AttachmentError, match=r"another processor \(FusedAttnProcessor2_0\) after the adapt"
        ):
            latents(pipe)
        pipe.unfuse_qkv_projections(vae=False)
        assert torch.equal(latents(pipe), before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("is_made_first", [True, False])
def test_an_adapter_acts_in_the_pipelines_that_share_the_unet(pipe: Any, is_made_first: bool) -> None:
    settings = {"image": tiny.picture(width=16, height=16), "strength": 0.9, "num_inference_steps": 3}
    adapter = tiny.adapter(pipe.unet)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe) if is_made_first else None
    with adapter.attach(pipe), adapter.references(REFERENCE):
        other = other or StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        made = latents(other, **settings)
    with adapter.attach(other), adapter.references(REFERENCE):
        assert torch.equal(latents(other, **settings), made)
    assert_differ(latents(other, **settings), made)
