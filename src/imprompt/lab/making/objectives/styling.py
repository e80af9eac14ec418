"""A fine-tuned base: the base's own loss on line drawings of the characters; only low-rank changes learn.

    W → W + B A        A: rank × in, B: out × rank, B begins as zero        (LoRA, arXiv 2106.09685)

The captions are those of the base, colors too, though a line drawing has none: so the style holds whatever
the text says, or an image prompt. The adapter plays no part here; it is to work on this base unseen.
"""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Generator, Tensor

from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.lines import draw_lines
from imprompt.lab.making.objectives.denoising import (
    PROMPTS,
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
from imprompt.lab.making.recipe import StyleRecipe
from imprompt.runtime.settings import resolve_in_cache
from imprompt.training.objectives.objective import Objective
from imprompt.training.sheets import picture_grid

CHANGED_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut",
)  # fmt: skip
"""Which of the U-Net's matrices and convolutions get a low-rank change: nearly all."""


class StyleObjective(Objective):
    """The U-Net's low-rank changes on the base's frozen weights."""

    autocasts = True

    def __init__(self, recipe: StyleRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.drawings = Drawings(resolve_in_cache(recipe.data), "training")
        self.base: Any = load_frozen_base(output)
        self.unet: Any = self.base.unet
        change = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(CHANGED_LAYERS))
        self.unet.add_adapter(change)
        pixels, self.held_out_captions = held_out_pictures(recipe.data)
        self.held_out_pixels = draw_lines(pixels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A and B of every changed layer."""
        changes = [weight for weight in self.unet.parameters() if weight.requires_grad]
        return [{"params": changes, "lr": self.recipe.learning_rate}]

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """The velocity's squared error at random times, some captions dropped."""
        pixels = draw_lines(to_pixels(self.drawings.pictures[batch.rows]).to(self.unet.device))
        latents = encode_latents(self.base.vae, pixels)
        draws = draw_step(self.drawings, batch, latents, self.recipe.text_drop)
        return {"loss": self.error(latents, *draws)}

    def error(
        self,
        latents: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
    ) -> Float[Tensor, ""]:
        """‖v - v_θ‖² of the changed U-Net."""
        with torch.no_grad():
            texts = encode_texts(self.base.text_encoder, self.base.tokenizer, captions)
        return velocity_error(self.unet, self.base.scheduler, latents, noise, timesteps, texts)

    def held_out(self) -> dict[str, float]:
        """The loss on unseen combinations in this style: with the changes, and of the base without them."""
        latents = encode_latents(self.base.vae, self.held_out_pixels.to(self.unet.device))

        def mean_error() -> float:
            return measure_held_out_error(
                latents, lambda x, noise, times: self.error(x, noise, times, self.held_out_captions)
            )

        changed = mean_error()
        self.unet.disable_adapters()
        unchanged = mean_error()
        self.unet.enable_adapters()
        return {"held-out loss": changed, "held-out loss of the base": unchanged}

    def draw_samples(self) -> Image.Image:
        """Line drawings of unseen characters, and the base's prompts in this style."""
        shown = self.base(
            list(PROMPTS),
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=Generator().manual_seed(0),
        ).images
        return picture_grid([list(self.held_out_pixels[:8]), shown[:8], shown[8:]])

    def export(self, output: Path) -> None:
        """The changes as a LoRA file in diffusers' layout."""
        changes = cast(Any, get_peft_model_state_dict(cast(Any, self.unet)))
        StableDiffusionPipeline.save_lora_weights(output / "styles" / "lines", unet_lora_layers=changes)
