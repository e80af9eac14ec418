"""What the tests of references share: one forward pass or one generation with references, and the base's."""

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

import tiny
from imprompt.adapter.module import ImagePromptAdapter

STEPS = 4


def output(unet: UNet2DConditionModel, batch: int = 2, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = tiny.unet_input(unet, batch=batch) | changes
    return unet(**arguments).sample


def run_unet(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, *references: Any, **changes: Any
) -> Tensor:
    with adapter.attach(unet), adapter.references(*references):
        return output(unet, **changes)


def latents(pipe: Any, prompt: str | list[str] = "a cat", **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    settings = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generator}
    return pipe(prompt, **(settings | arguments)).images


def draw_latents(pipe: Any, adapter: ImagePromptAdapter, *references: Any, **arguments: Any) -> Tensor:
    with adapter.attach(pipe), adapter.references(*references):
        return latents(pipe, **arguments)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def ramp(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height * width).reshape(height, width)
