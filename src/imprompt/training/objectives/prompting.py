"""The adapter's loss: the base model's own, with the image prompt beside the text; only the adapter learns.

    loss = ‖v - v_θ(x_t, c_t, c_i, t)‖²       (Ye et al. 2023, equation 6, with v for ε, as the base has it)

Image dropped 5 %, text 5 %, both 5 %; a dropped image is a zero embedding before the projection. The
reference sometimes stands on another ground than the target, whose caption names the ground: so text keeps
its say.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from imprompt.adapter import ImagePromptAdapter
from imprompt.checkpoint import save_adapter
from imprompt.projection import LinearProjection
from imprompt.reference import Reference
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
    unseen_batch,
    velocity_error,
)
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import AdapterRecipe
from imprompt.training.sheets import picture_grid

SHOWN = 16
"""Held-out references in the sample grid."""

SHOWN_TEXT = "on a blue background"


class AdapterObjective(StageObjective):
    """The adapter, attached to the frozen base for good."""

    def __init__(self, recipe: AdapterRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.pipe = pipe = frozen_base(output)
        self.unet, self.text_encoder, self.codec = pipe.unet, pipe.text_encoder, pipe.vae
        encoder = CLIPVisionModelWithProjection.from_pretrained(output / "image_encoder")
        self.image_encoder = encoder.requires_grad_(False)
        context_dim = self.text_encoder.config.hidden_size
        projection = LinearProjection(encoder.config.projection_dim, context_dim, recipe.tokens)
        self.adapter = ImagePromptAdapter.for_unet(self.unet, projection)
        self.adapter.attach(self.pipe)
        self.unseen = unseen_batch(recipe)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The projection and every K', V'."""
        return [{"params": list(self.adapter.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The velocity's squared error at random times, some images and captions dropped."""
        generator = batch.generator(self.unet.device)
        device, recipe, count = self.unet.device, self.recipe, len(batch.pixels)
        draw = torch.rand(count, generator=generator, device=device)
        both = draw < recipe.both_drop
        no_image = both | ((draw >= recipe.both_drop) & (draw < recipe.both_drop + recipe.image_drop))
        no_text = both | (draw > 1 - recipe.text_drop)
        embeddings = self.embed(batch.reference_pixels).masked_fill(no_image[:, None], 0.0)
        captions = ["" if dropped else text for text, dropped in zip(batch.captions, no_text, strict=True)]
        latents = encode_latents(self.codec, batch.pixels.to(device))
        timesteps = sample_timesteps(count, generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return {"loss": self.error(latents, noise, timesteps, captions, embeddings)}

    @torch.no_grad()
    def embed(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding"]:
        """The frozen encoder's image embeddings; pictures in [-1, 1] are its pixels."""
        return self.image_encoder(pixels.to(self.unet.device)).image_embeds

    def error(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        captions: list[str],
        embeddings: Float[Tensor, "batch embedding"],
    ) -> Float[Tensor, ""]:
        """‖v - v_θ‖² under text and image prompt."""
        with torch.no_grad():
            texts = encode_texts(self.text_encoder, self.pipe.tokenizer, captions)
        with self.adapter.conditioned_on(embeddings[:, None]):
            return velocity_error(self.unet, self.pipe.scheduler, latents, noise, timesteps, texts)

    def held_out(self) -> dict[str, float]:
        """The loss on unseen concepts without text: true reference, shuffled reference, none."""
        latents = encode_latents(self.codec, self.unseen.pixels.to(self.unet.device))
        embeddings, noise, silence = self.embed(self.unseen.pixels), fixed_noise(latents), [""] * len(latents)

        def loss(conditions: Tensor) -> float:
            times = [torch.full((len(latents),), t, device=latents.device) for t in BANDS]
            return sum(float(self.error(latents, noise, t, silence, conditions)) for t in times) / len(BANDS)

        true, shuffled = loss(embeddings), loss(embeddings.roll(1, dims=0))
        return {
            "held-out loss": true,
            "gap to shuffled": shuffled - true,
            "gap to none": loss(embeddings * 0) - true,
        }

    def picture(self) -> Image.Image:
        """References in the first row; then λ = 0, 0.5, 1 and 1 with text."""
        pixels = self.unseen.pixels[:SHOWN]
        embeddings = self.embed(pixels)
        rows: list[Any] = [list(pixels)]
        for scale, text in ((0.0, ""), (0.5, ""), (1.0, ""), (1.0, SHOWN_TEXT)):
            references: list[Any] = [Reference(row[None].cpu(), scale=scale) for row in embeddings]
            with self.adapter.references(references):
                rows.append(
                    self.pipe(
                        [text] * len(pixels),
                        num_inference_steps=SHOWN_STEPS,
                        guidance_scale=SHOWN_GUIDANCE,
                        generator=torch.Generator().manual_seed(0),
                    ).images
                )
        return picture_grid(rows, zoom=2)

    def export(self, output: Path) -> None:
        """The adapter as an official-layout file."""
        (output / "adapter").mkdir(parents=True, exist_ok=True)
        encoder = {"encoder": "the image encoder beside it, projected embedding"}
        save_adapter(self.adapter, output / "adapter" / "ip-adapter.safetensors", encoder)
