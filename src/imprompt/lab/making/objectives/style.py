"""A fine-tuned base: the base's own loss on line drawings; only low-rank changes are trained.

    W → W + B A        A: rank × in, B: out × rank, B is zero at the beginning        (LoRA, arXiv 2106.09685)

The captions are those of the base, with colors, though a line drawing has none. So the style does not depend
on the text, or on an image prompt. The adapter is not used here; it must work on this base without training
on it.
"""

from pathlib import Path
from typing import Any, cast

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Generator, Tensor

from imprompt.lab.making.batches import DrawingBatch
from imprompt.lab.making.lines import draw_lines
from imprompt.lab.making.objectives.base import (
    PROMPTS,
    SHOWN_GUIDANCE,
    SHOWN_STEPS,
    FrozenBaseObjective,
    draw_step,
    encode_latents,
    measure_held_out_error,
)
from imprompt.lab.making.recipe import StyleRecipe
from imprompt.training.sheets import picture_grid

CHANGED_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut",
)  # fmt: skip
"""The U-Net's matrices and convolutions that get a low-rank change: nearly all."""


class StyleObjective(FrozenBaseObjective):
    """The U-Net's low-rank changes on the base's frozen weights."""

    def __init__(self, recipe: StyleRecipe, output: Path) -> None:
        super().__init__(recipe, output)
        self.unet: Any = self.base.unet
        change = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(CHANGED_LAYERS))
        self.unet.add_adapter(change)
        self.held_out_pixels = draw_lines(self.held_out_pixels)

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the velocity's squared error at random times; some captions are dropped."""
        latents = encode_latents(self.base.vae, draw_lines(self.pixels(batch)))
        draws = draw_step(self.drawings, batch, latents, self.recipe.text_drop)
        return {"loss": self.error(self.unet, latents, *draws)}

    def measure_held_out(self) -> dict[str, float]:
        """Return the loss on unseen combinations in this style, with the changes and of the base alone."""
        latents = encode_latents(self.base.vae, self.held_out_pixels.to(self.device))

        def mean_error() -> float:
            return measure_held_out_error(
                latents,
                lambda x, noise, times: self.error(self.unet, x, noise, times, self.held_out_captions),
            )

        changed = mean_error()
        self.unet.disable_adapters()
        unchanged = mean_error()
        self.unet.enable_adapters()
        return {"held-out loss": changed, "held-out loss of the base": unchanged}

    def draw_samples(self) -> Image.Image:
        """Draw line drawings of unseen characters, and the base's prompts in this style."""
        shown = self.base(
            list(PROMPTS),
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=Generator().manual_seed(0),
        ).images
        return picture_grid([list(self.held_out_pixels[:8]), shown[:8], shown[8:]])

    def export(self, output: Path) -> None:
        """Write the changes as a LoRA file in diffusers' layout."""
        changes = cast(Any, get_peft_model_state_dict(cast(Any, self.unet)))
        StableDiffusionPipeline.save_lora_weights(output / "styles" / "lines", unet_lora_layers=changes)
