"""A ControlNet on edges: the base's own loss, with the target's edges beside the text; only it learns.

    loss = ‖v - v_θ(x_t, c_t, t; C(x_t, t, edges))‖²        (ControlNet, arXiv 2302.05543)

C is a copy of the convolutions of the U-Net's first half whose outputs, added to the frozen U-Net's own,
begin as zero. It has none of the attention: edges say where things are, whatever the text, and half of the
weights stay out of the package. Half of the captions are dropped, so that edges alone say what they can:
they are to act beside an image prompt without text.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor

from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.objectives.denoising import (
    SHOWN_GUIDANCE,
    SHOWN_STEPS,
    draw_step,
    encode_latents,
    encode_texts,
    held_out_pictures,
    load_frozen_base,
    measure_held_out_error,
    velocity_error,
)
from imprompt.lab.making.recipe import ControlRecipe
from imprompt.mini.edges import edges
from imprompt.runtime.settings import resolve_in_cache
from imprompt.training.objectives.objective import Objective
from imprompt.training.sheets import picture_grid

SHOWN = 12
"""Held-out pictures whose edges the sample grid shows."""


class ControlObjective(Objective):
    """The ControlNet beside the frozen base."""

    autocasts = True

    def __init__(self, recipe: ControlRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.drawings = Drawings(resolve_in_cache(recipe.data), "training")
        self.base: Any = load_frozen_base(output)
        self.controlnet: Any = build_controlnet(self.base.unet, recipe).train()
        self.pipe: Any = StableDiffusionControlNetPipeline(
            **self.base.components, controlnet=self.controlnet, requires_safety_checker=False
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.held_out_pixels, self.held_out_captions = held_out_pictures(recipe.data)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All of the ControlNet."""
        return [{"params": list(self.controlnet.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """The velocity's squared error at random times, given the target's edges; many captions dropped."""
        pixels = to_pixels(self.drawings.pictures[batch.rows]).to(self.controlnet.device)
        latents = encode_latents(self.base.vae, pixels)
        draws = draw_step(self.drawings, batch, latents, self.recipe.text_drop)
        return {"loss": self.error(latents, *draws, edges(pixels))}

    def error(
        self,
        latents: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
        control: Float[Tensor, "batch 3 size size"],
    ) -> Float[Tensor, ""]:
        """‖v - v_θ‖² under text and edges."""
        with torch.no_grad():
            texts = encode_texts(self.base.text_encoder, self.base.tokenizer, captions)

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

        return velocity_error(denoise, self.base.scheduler, latents, noise, timesteps, texts)

    def held_out(self) -> dict[str, float]:
        """The loss on unseen combinations without text: under their own edges, and under others'."""
        pixels = self.held_out_pixels.to(self.controlnet.device)
        latents, own = encode_latents(self.base.vae, pixels), edges(pixels)
        empty = [""] * len(latents)

        def mean_error(control: Tensor) -> float:
            return measure_held_out_error(
                latents, lambda x, noise, times: self.error(x, noise, times, empty, control)
            )

        true, shuffled = mean_error(own), mean_error(own.roll(1, dims=0))
        return {"held-out loss": true, "gap to shuffled": shuffled - true}

    def draw_samples(self) -> Image.Image:
        """Unseen pictures; their edges; and what is drawn from these: not at all, without text, with text."""
        pixels = self.held_out_pixels[:SHOWN]
        captions, empty = self.held_out_captions[:SHOWN], [""] * SHOWN
        control = edges(pixels)
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
        """A folder as `ControlNetModel.from_pretrained` reads it."""
        self.controlnet.save_pretrained(output / "control")


def build_controlnet(unet: UNet2DConditionModel, recipe: ControlRecipe) -> ControlNetModel:
    """A ControlNet without attention for this U-Net, whose convolutions begin as the U-Net's own."""
    widths = recipe.embedding_widths
    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    options = {name: value for name, value in whole.config.items() if not name.startswith("_")}
    options["down_block_types"] = ("DownBlock2D",) * len(options["block_out_channels"])
    options["mid_block_type"] = "UNetMidBlock2D"
    controlnet = ControlNetModel(**options)
    controlnet.load_state_dict(whole.state_dict(), strict=False)
    return controlnet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
