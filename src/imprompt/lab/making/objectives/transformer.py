"""The embedded transformer's loss: rectified flow in FLUX.1's architecture.

    x_σ = (1 - σ) x + σ ε        v = ε - x        loss = ‖v - v_θ(x_σ, c, σ)‖²

σ is logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1), with its center moved down as in the
base, whose latents are weaker than the noise. The autoencoder and the text encoder are the base's, frozen:
its last states are the sequence of text tokens, its pooled output the vector that modulates all blocks. Some
captions are dropped, for true guidance; there is no distilled guidance. A block begins as the identity
(adaLN-Zero, Peebles and Xie 2022, arXiv 2212.09748, section 3.2).
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from imprompt.lab.making.batches import DrawingBatch
from imprompt.lab.making.captions import sample_caption
from imprompt.lab.making.objectives.base import (
    PROMPTS,
    SHOWN_GUIDANCE,
    SHOWN_STEPS,
    drop_some,
    encode_all,
    encode_latents,
    load_frozen_base,
    load_held_out_pictures,
)
from imprompt.lab.making.objectives.stage import StageObjective
from imprompt.lab.making.recipe import TransformerRecipe
from imprompt.mini import assemble_transformer, find_part
from imprompt.mini.tokenizer import BoundedTokenizer
from imprompt.runtime.foreign_models import log_errors_only
from imprompt.training.denoising import number_places
from imprompt.training.sheets import picture_grid

BANDS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The noise levels σ at which the held-out loss is measured."""


class TransformerObjective(StageObjective):
    """A transformer on the frozen autoencoder's latents and the frozen text encoder's states."""

    def __init__(self, recipe: TransformerRecipe, output: Path) -> None:
        super().__init__(recipe)
        base = load_frozen_base(output)
        self.codec, self.text_encoder = base.vae, base.text_encoder.eval()
        self.tokenizer = BoundedTokenizer.from_pretrained(
            find_part(output, "base") / "tokenizer", model_max_length=recipe.text_length
        )
        self.latents = encode_all(self.codec, self.drawings)
        self.transformer = build_transformer(recipe, self.latents.shape[1], self.text_encoder)
        self.trained_transformer = self.compile_trained(self.transformer)
        pixels, self.held_out_captions = load_held_out_pictures(recipe.data)
        self.held_out_latents = encode_latents(self.codec, pixels)

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the velocity's squared error at random noise levels; some captions are dropped."""
        latents = self.latents[batch.rows].float().to(self.device)
        rng, generator = batch.make_random(), batch.make_generator(latents.device)
        captions = [sample_caption(self.drawings.characters[row], rng) for row in batch.rows]
        captions = drop_some(captions, self.recipe.text_drop, rng)
        sigmas = sample_noise_levels(len(latents), self.recipe.timestep_location, generator)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        texts = self.encode_texts(captions)
        # Plain products and a softmax: on a CPU faster than fused attention with its backward pass.
        is_plain = self.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if is_plain else contextlib.nullcontext():
            return {"loss": flow_error(self.trained_transformer[0], latents, noise, sigmas, texts)}

    def measure_held_out(self) -> dict[str, float]:
        """Return the loss on unseen combinations, by noise level, with fixed noise."""
        latents = self.held_out_latents.to(self.device)
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(latents.device)
        texts = self.encode_texts(self.held_out_captions)
        errors = {}
        for level in BANDS:
            sigmas = torch.full((len(latents),), level, device=latents.device)
            error = flow_error(self.transformer, latents, noise, sigmas, texts)
            errors[f"held-out loss at {level}"] = float(error)
        return errors | {"held-out loss": sum(errors.values()) / len(errors)}

    @torch.no_grad()
    def encode_texts(self, captions: list[str]) -> "TextStates":
        """Encode captions as FLUX.1's pipeline does."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        encoded = self.text_encoder(tokens.input_ids.to(self.device))
        return TextStates(encoded.last_hidden_state, encoded.pooler_output)

    def draw_samples(self) -> Image.Image:
        """Draw the base's prompts, two images each."""
        pipe: Any = self.pipeline()
        rows = []
        for seed in range(2):
            with log_errors_only("diffusers", "transformers"):  # they would name every prompt that is cut
                shown = pipe(
                    list(PROMPTS),
                    negative_prompt="",
                    true_cfg_scale=SHOWN_GUIDANCE,
                    num_inference_steps=SHOWN_STEPS,
                    generator=Generator().manual_seed(seed),
                    height=self.size,
                    width=self.size,
                ).images
            rows += [shown[i : i + 8] for i in range(0, len(shown), 8)]
        return picture_grid(rows)

    @property
    def size(self) -> int:
        """The height and width of the drawings in pixels."""
        return self.drawings.pictures.shape[1]

    def pipeline(self) -> FluxPipeline:
        """Assemble the parts as diffusers' pipeline of FLUX.1."""
        return assemble_transformer(self.codec.split(2), self.text_encoder, self.tokenizer, self.transformer)

    def export(self, output: Path) -> None:
        """Write the whole pipeline in diffusers' folder format."""
        self.pipeline().save_pretrained(output / "transformer")


class TextStates(NamedTuple):
    """Encoded captions."""

    sequence: Float[Tensor, "batch text_len text_width"]
    pooled: Float[Tensor, "batch text_width"]


def build_transformer(
    recipe: TransformerRecipe, channels: int, text_encoder: CLIPTextModel
) -> FluxTransformer2DModel:
    """Build a small transformer with one token for each latent; its blocks begin as the identity."""
    side = 2 * round(0.21875 * recipe.head_dim)  # as FLUX.1: 56 of 128
    width = text_encoder.config.hidden_size
    transformer = FluxTransformer2DModel(
        in_channels=channels,
        num_layers=recipe.double_blocks,
        num_single_layers=recipe.single_blocks,
        attention_head_dim=recipe.head_dim,
        num_attention_heads=recipe.heads,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        guidance_embeds=False,
        axes_dims_rope=(recipe.head_dim - 2 * side, side, side),
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and is_zero_at_first(name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def is_zero_at_first(name: str) -> bool:
    """Whether a linear layer is zero before training: the modulations, and the output."""
    return name == "proj_out" or ("norm" in name and name.endswith(".linear"))


def sample_noise_levels(count: int, location: float, generator: Generator) -> Float[Tensor, " count"]:
    """Sample σ in (0, 1) whose logit is normal around `location`."""
    return (torch.randn(count, generator=generator, device=generator.device) + location).sigmoid()


def flow_error(
    transformer: Callable[..., Any],
    latents: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    sigmas: Float[Tensor, " batch"],
    texts: TextStates,
) -> Float[Tensor, ""]:
    """Return ‖v - v_θ(x_σ, c, σ)‖², the mean over everything."""
    clean, noise = to_tokens(latents), to_tokens(noise)
    level = sigmas[:, None, None]
    predicted = transformer(
        hidden_states=(1 - level) * clean + level * noise,
        timestep=sigmas,
        encoder_hidden_states=texts.sequence,
        pooled_projections=texts.pooled,
        img_ids=number_places(*latents.shape[-2:]).to(latents.device),
        txt_ids=latents.new_zeros(texts.sequence.shape[1], 3),
        return_dict=False,
    )[0]
    return F.mse_loss(predicted.float(), noise - clean)


def to_tokens(
    latents: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch tokens channels"]:
    """Return one token for each latent, row by row."""
    return latents.flatten(2).transpose(1, 2)
