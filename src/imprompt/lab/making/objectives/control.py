"""A ControlNet of edges: the base's own loss, given the target's edges; only the ControlNet is trained.

    loss = ‖v - v_θ(x_t, c_t, t; C(x_t, t, edges))‖²        (ControlNet, arXiv 2302.05543)

C is a copy of the convolutions of the U-Net's first half. Its outputs, which are added to the frozen U-Net's
own, are zero at the beginning. It has no attention: edges say where things are, whatever the text, and half
of the weights stay out of the package. Half of the captions are dropped, so that edges alone are enough: they
are to act together with an image prompt without text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor

from imprompt.lab.making.batches import DrawingBatch
from imprompt.lab.making.objectives.base import (
    SHOWN_GUIDANCE,
    SHOWN_STEPS,
    FrozenBaseObjective,
    draw_step,
    encode_latents,
    measure_held_out_error,
)
from imprompt.lab.making.recipe import ControlRecipe
from imprompt.mini.edges import compute_edges
from imprompt.training.mechanisms.shuffled_control import preserve_variance
from imprompt.training.sheets import picture_grid

SHOWN = 12
"""The number of held-out pictures whose edges are in the sample grid."""


class ControlObjective(FrozenBaseObjective):
    """The ControlNet with the frozen base."""

    def __init__(self, recipe: ControlRecipe, output: Path) -> None:
        super().__init__(recipe, output)
        self.controlnet: Any = build_controlnet(self.base.unet, recipe).train()
        self.pipe: Any = StableDiffusionControlNetPipeline(
            **self.base.components, controlnet=self.controlnet, requires_safety_checker=False
        )
        self.pipe.set_progress_bar_config(disable=True)

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the velocity's squared error at random times, given edges; many captions are dropped."""
        pixels = self.pixels(batch)
        latents = encode_latents(self.base.vae, pixels)
        draws = draw_step(self.drawings, batch, latents, self.recipe.text_drop)
        return {"loss": self.error(self.attach_control(compute_edges(pixels)), latents, *draws)}

    def attach_control(self, control: Float[Tensor, "batch 3 size size"]) -> Callable[..., Any]:
        """Return the base's U-Net with the ControlNet under these edges."""

        def denoise(noisy_latents: Tensor, times: Tensor, text_embeddings: Tensor) -> Any:
            down, middle = self.controlnet(
                noisy_latents, times, text_embeddings, controlnet_cond=control, return_dict=False
            )
            return self.base.unet(
                noisy_latents,
                times,
                text_embeddings,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )

        return denoise

    def measure_held_out(self) -> dict[str, float]:
        """Return the loss on unseen combinations without text: under their own edges, and under others'."""
        pixels = self.held_out_pixels.to(self.device)
        latents, own = encode_latents(self.base.vae, pixels), compute_edges(pixels)
        empty = [""] * len(latents)

        def mean_error(control: Tensor) -> float:
            unet = self.attach_control(control)
            return measure_held_out_error(
                latents, lambda x, noise, times: self.error(unet, x, noise, times, empty)
            )

        true, shuffled = mean_error(own), mean_error(own.roll(1, dims=0))
        return {"held-out loss": true, "gap to shuffled": shuffled - true}

    def draw_samples(self) -> Image.Image:
        """Draw unseen pictures, their edges, and images: without edges, with edges alone, with text too."""
        pixels = self.held_out_pixels[:SHOWN]
        captions, empty = self.held_out_captions[:SHOWN], [""] * SHOWN
        control = compute_edges(pixels)
        rows: list[Any] = [list(pixels), list(control * 2 - 1)]
        for prompts, scale in ((empty, 0.0), (empty, 1.0), (captions, 1.0)):
            rows.append(
                self.pipe(
                    prompts,
                    image=control,
                    num_inference_steps=SHOWN_STEPS,
                    guidance_scale=SHOWN_GUIDANCE,
                    controlnet_conditioning_scale=scale,
                    generator=Generator().manual_seed(0),
                ).images
            )
        return picture_grid(rows)

    def export(self, output: Path) -> None:
        """Write a folder that `ControlNetModel.from_pretrained` reads."""
        self.controlnet.save_pretrained(output / "control")


def build_controlnet(unet: UNet2DConditionModel, recipe: ControlRecipe) -> ControlNetModel:
    """Build a ControlNet without attention for this U-Net, whose convolutions begin as the U-Net's own."""
    widths = recipe.embedding_widths
    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    options = {name: value for name, value in whole.config.items() if not name.startswith("_")}
    options["down_block_types"] = ("DownBlock2D",) * len(options["block_out_channels"])
    options["mid_block_type"] = "UNetMidBlock2D"
    controlnet = ControlNetModel(**options)
    controlnet.load_state_dict(whole.state_dict(), strict=False)
    preserve_variance(controlnet.controlnet_cond_embedding)
    return controlnet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
