"""A fine-tuned base: the base's own loss on pictures of one style; only low-rank changes of the U-Net learn.

    W → W + B A        A: rank × in, B: out × rank, B begins as zero        (LoRA, arXiv 2106.09685)

The captions are those of the base, grounds too, though the style has a ground of its own: so the style holds
whatever the text says, or an image prompt. The adapter plays no part here; it is to work on this base unseen.
"""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

from imprompt.training.data import Batch, EmojiBatches, EmojiPictures
from imprompt.training.objectives.denoising import (
    BANDS,
    LOOK,
    PROMPTS,
    SHOWN_GUIDANCE,
    SHOWN_STEPS,
    encode_latents,
    encode_texts,
    fixed_noise,
    frozen_base,
    sample_timesteps,
    some_dropped,
    velocity_error,
)
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import StyleRecipe, in_cache
from imprompt.training.sheets import picture_grid
from imprompt.training.styles import styled_pictures

CHANGED = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut",
)  # fmt: skip
"""Which of the U-Net's matrices and convolutions get a low-rank change: nearly all."""


class StyleObjective(StageObjective):
    """The U-Net's low-rank changes on the base's frozen weights."""

    def __init__(self, recipe: StyleRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.pipe = pipe = frozen_base(output)
        self.unet, self.text_encoder, self.codec = pipe.unet, pipe.text_encoder, pipe.vae
        change = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(CHANGED))
        self.unet.add_adapter(change)
        unseen = styled_pictures(recipe.style, in_cache(recipe.data), held_out=True)
        self.unseen = EmojiBatches(unseen, LOOK, seed=recipe.seed, mixture=recipe.mixture)[0]

    def pictures(self, folder: Path) -> EmojiPictures:
        """The drawings in the recipe's style."""
        return styled_pictures(self.recipe.style, folder)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A and B of every changed layer."""
        changes = [weight for weight in self.unet.parameters() if weight.requires_grad]
        return [{"params": changes, "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The velocity's squared error at random times, some captions dropped."""
        generator = batch.generator(self.unet.device)
        device, count = self.unet.device, len(batch.pixels)
        captions = some_dropped(batch.captions, self.recipe.text_drop, generator)
        latents = encode_latents(self.codec, batch.pixels.to(device))
        timesteps = sample_timesteps(count, generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return {"loss": self.error(latents, noise, timesteps, captions)}

    def error(
        self,
        latents: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
    ) -> Float[Tensor, ""]:
        """‖v - v_θ‖² of the changed U-Net."""
        with torch.no_grad():
            texts = encode_texts(self.text_encoder, self.pipe.tokenizer, captions)
        return velocity_error(self.unet, self.pipe.scheduler, latents, noise, timesteps, texts)

    def held_out(self) -> dict[str, float]:
        """The loss on unseen concepts in this style: with the changes, and of the base without them."""
        latents = encode_latents(self.codec, self.unseen.pixels.to(self.unet.device))
        noise = fixed_noise(latents)
        times = [torch.full((len(latents),), t, device=latents.device) for t in BANDS]

        def loss() -> float:
            errors = [float(self.error(latents, noise, t, self.unseen.captions)) for t in times]
            return sum(errors) / len(errors)

        changed = loss()
        self.unet.disable_adapters()
        unchanged = loss()
        self.unet.enable_adapters()
        return {"held-out loss": changed, "held-out loss of the base": unchanged}

    def picture(self) -> Image.Image:
        """The base's prompts, one picture each, and one row without text."""
        prompts = [*PROMPTS, *[""] * 8]
        shown = self.pipe(
            prompts,
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=torch.Generator().manual_seed(0),
        ).images
        return picture_grid([shown[i : i + 8] for i in range(0, len(shown), 8)], zoom=2)

    def export(self, output: Path) -> None:
        """The changes as a LoRA file in diffusers' layout."""
        changes = cast(Any, get_peft_model_state_dict(cast(Any, self.unet)))
        StableDiffusionPipeline.save_lora_weights(
            output / "styles" / self.recipe.style, unet_lora_layers=changes
        )
