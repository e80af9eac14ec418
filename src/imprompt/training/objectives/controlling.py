"""A ControlNet on edges: the base's own loss, with the target's edges beside the text; only it learns.

    loss = ‖v - v_θ(x_t, c_t, t; C(x_t, c_t, t, edges))‖²        (ControlNet, arXiv 2302.05543)

C is a copy of the U-Net's first half whose outputs, added to the frozen U-Net's own, begin as zero. Half of
the captions are dropped, so that edges alone say what they can: they are to act beside an image prompt
without text.
"""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from imprompt.mini.edges import edges
from imprompt.training.data import Batch
from imprompt.training.objectives.denoising import (
    BANDS,
    SHOWN_GUIDANCE,
    SHOWN_STEPS,
    encode_latents,
    encode_texts,
    fixed_noise,
    frozen_base,
    sample_timesteps,
    some_dropped,
    unseen_batch,
    velocity_error,
)
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import ControlRecipe
from imprompt.training.sheets import picture_grid

SHOWN = 12
"""Held-out pictures whose edges the sample grid shows."""


class ControlObjective(StageObjective):
    """The ControlNet beside the frozen base."""

    def __init__(self, recipe: ControlRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        pipe = frozen_base(output)
        self.unet, self.text_encoder, self.codec = pipe.unet, pipe.text_encoder, pipe.vae
        control = ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=recipe.embedding_widths
        )
        self.controlnet = cast(Any, control).to(memory_format=torch.channels_last).train()
        self.pipe: Any = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=self.controlnet, requires_safety_checker=False
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.unseen = unseen_batch(recipe)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All of the ControlNet."""
        return [{"params": list(self.controlnet.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The velocity's squared error at random times, given the target's edges; many captions dropped."""
        generator = batch.generator(self.unet.device)
        device, count = self.unet.device, len(batch.pixels)
        captions = some_dropped(batch.captions, self.recipe.text_drop, generator)
        pixels = batch.pixels.to(device)
        latents = encode_latents(self.codec, pixels)
        timesteps = sample_timesteps(count, generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return {"loss": self.error(latents, noise, timesteps, captions, edges(pixels))}

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
            texts = encode_texts(self.text_encoder, self.pipe.tokenizer, captions)

        def controlled(noisy_latents: Tensor, times: Tensor, text_embeddings: Tensor) -> Any:
            down, middle = self.controlnet(
                noisy_latents, times, text_embeddings, controlnet_cond=control, return_dict=False
            )
            return self.unet(
                noisy_latents,
                times,
                text_embeddings,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )

        return velocity_error(controlled, self.pipe.scheduler, latents, noise, timesteps, texts)

    def held_out(self) -> dict[str, float]:
        """The loss on unseen concepts without text: under their own edges, and under another picture's."""
        pixels = self.unseen.pixels.to(self.unet.device)
        latents, own = encode_latents(self.codec, pixels), edges(pixels)
        noise, silence = fixed_noise(latents), [""] * len(latents)
        times = [torch.full((len(latents),), t, device=latents.device) for t in BANDS]

        def loss(control: Tensor) -> float:
            return sum(float(self.error(latents, noise, t, silence, control)) for t in times) / len(times)

        true, shuffled = loss(own), loss(own.roll(1, dims=0))
        return {"held-out loss": true, "gap to shuffled": shuffled - true}

    def picture(self) -> Image.Image:
        """Unseen pictures; their edges; and what is drawn from these: not at all, without text, with text."""
        pixels = self.unseen.pixels[:SHOWN]
        captions, silence = self.unseen.captions[:SHOWN], [""] * SHOWN
        control = edges(pixels)
        rows: list[Any] = [list(pixels), list(control * 2 - 1)]
        for prompts, scale in ((silence, 0.0), (silence, 1.0), (captions, 1.0)):
            rows.append(
                self.pipe(
                    prompts,
                    image=control,
                    num_inference_steps=SHOWN_STEPS,
                    guidance_scale=SHOWN_GUIDANCE,
                    controlnet_conditioning_scale=scale,
                    generator=torch.Generator().manual_seed(0),
                ).images
            )
        return picture_grid(rows, zoom=2)

    def export(self, output: Path) -> None:
        """A folder as `ControlNetModel.from_pretrained` reads it."""
        self.controlnet.save_pretrained(output / "control")
