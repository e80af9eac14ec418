"""Numbers that a narrow format cannot hold: exact where they can be kept, refused where they cannot."""

from typing import Any

import pytest
import torch
from torch import Tensor

import adapter_files
import tiny
from imprompt.errors import InvalidReference
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference
from showing import latents


def draw_perceived(dtype: torch.dtype, factor: float, scale: float = 1.0, **settings: Any) -> Tensor:
    """Drawn through a perceiver whose first layer makes numbers `factor` times as large as usual."""
    pipe = tiny.sd_pipeline().to(dtype)
    adapter = adapter_files.adapter(tiny.sd_unet(), "plus")
    adapter.projection.state_dict()["proj_in.weight"].mul_(factor)
    adapter.image_encoder = ImageEncoder(tiny.vision_model(seed=3)).to(dtype)
    with adapter.to(dtype).attach(pipe), adapter.references(Reference(tiny.picture(), scale=scale)):
        return latents(pipe, **settings)


@pytest.mark.parametrize("factor", [1.0, 2e3, 2e4])
def test_keys_and_values_of_a_half_precision_adapter_are_made_in_single(factor: float) -> None:
    half, single = (draw_perceived(dtype, factor) for dtype in (torch.float16, torch.float32))
    assert torch.isfinite(half).all()
    assert (half.float() - single).std() < 0.1 * single.std()


@pytest.mark.parametrize("scale", [1e6, -1e7])
def test_a_value_that_float16_cannot_hold_is_refused_and_bfloat16_holds_it(scale: float) -> None:
    with pytest.raises(InvalidReference, match=r"layer 1 is NaN or beyond what torch\.float16 holds"):
        draw_perceived(torch.float16, 1.0, scale)
    assert torch.isfinite(draw_perceived(torch.bfloat16, 1.0, scale, num_inference_steps=1)).all()


def test_an_encoder_that_overflows_is_refused() -> None:
    pipe = tiny.sd_pipeline()
    adapter, encoder = tiny.adapter(pipe.unet), tiny.vision_model(seed=3)
    with torch.no_grad():
        encoder.visual_projection.weight.mul_(1e6)
    adapter.image_encoder = ImageEncoder(encoder).to(torch.float16)
    with adapter.attach(pipe), pytest.raises(InvalidReference, match=r"torch.float16, contain NaN or inf"):
        adapter.references(tiny.picture())
