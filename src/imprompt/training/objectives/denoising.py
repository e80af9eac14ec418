"""The base model's loss: predict the velocity of a noised latent from its caption.

    x_t = √ᾱ x + √(1-ᾱ) ε        v = √ᾱ ε - √(1-ᾱ) x        loss = ‖v - v_θ(x_t, c_t, t)‖²

v-prediction (arXiv 2202.00512) on a schedule with no signal left at its end (arXiv 2305.08891), times drawn
logit-normally (arXiv 2403.03206). The text encoder goes on training beside the U-Net, more slowly.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from imprompt.mini import PatchAutoencoder, assemble
from imprompt.training.data import Batch, EmojiBatches, EmojiPictures
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import BaseRecipe, Recipe, in_cache
from imprompt.training.sheets import picture_grid

LOOK = 256
"""How many held-out pictures losses are taken of."""

BANDS = (100, 300, 500, 700, 900)
"""Timesteps at which the held-out loss is measured."""

TIMESTEP_LOCATION = -0.3
"""Centre of the times' logit: a little below the middle, since our latents are weaker than the noise."""

SHOWN_GUIDANCE = 4.0
SHOWN_STEPS = 20
PROMPTS = (
    "grinning face, noto style", "pig face, fluent style", "red heart, twemoji style", "dog face, flat style",
    "red apple, noto style", "automobile, twemoji style", "house, fluent style", "birthday cake, flat style",
    "woman with red hair, noto style", "sad face, blob style, on a blue background",
    "banana on a red background", "flag: France", "cat face, on a green background",
    "guitar, emojione style", "tree, flat style", "rocket",
    "hedgehog, noto style", "volcano, flat style", "penguin, twemoji style", "crown, fluent style",
    "popcorn", "owl, on a purple background", "running shoe, noto style", "robot, fluent style",
)  # fmt: skip
"""What the sample grid shows; the last eight concepts are held out."""


class BaseObjective(StageObjective):
    """U-Net and text encoder on the codec's latents."""

    def __init__(self, recipe: BaseRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = CLIPTokenizer.from_pretrained(output / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(output / "text_encoder").train()
        self.codec = cast(PatchAutoencoder, PatchAutoencoder.from_pretrained(output / "vae")).requires_grad_(
            False
        )
        self.unseen = unseen_batch(recipe)
        channels, context_dim = self.codec.config["latent_channels"], self.text_encoder.config.hidden_size
        sample_size = self.unseen.pixels.shape[-1] // self.codec.config["patch_size"]
        self.unet = build_unet(recipe, channels, context_dim, sample_size=sample_size)
        # Kept out of the module tree, where it would be a second copy of the U-Net.
        self.trained_unet = [torch.compile(self.unet) if recipe.compile else self.unet]
        self.scheduler = build_scheduler()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The U-Net at the recipe's rate, the text encoder at its own."""
        recipe = self.recipe
        return [
            {"params": list(self.unet.parameters()), "lr": recipe.learning_rate},
            {"params": list(self.text_encoder.parameters()), "lr": recipe.text_learning_rate},
        ]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The velocity's squared error at random times, some captions dropped."""
        generator = batch.generator(self.unet.device)
        device = self.unet.device
        latents = encode_latents(self.codec, batch.pixels.to(device))
        captions = some_dropped(batch.captions, self.recipe.text_drop, generator)
        timesteps = sample_timesteps(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return {"loss": self.error(latents, noise, timesteps, captions, unet=self.trained_unet[0])}

    def error(
        self,
        latents: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
        *,
        unet: Callable[..., Any] | None = None,
    ) -> Float[Tensor, ""]:
        """‖v - v_θ‖² for given noise and times."""
        text_embeddings = encode_texts(self.text_encoder, self.tokenizer, captions)
        return velocity_error(
            self.unet if unet is None else unet, self.scheduler, latents, noise, timesteps, text_embeddings
        )

    def held_out(self) -> dict[str, float]:
        """The loss on unseen concepts, by noise level, with fixed noise."""
        latents = encode_latents(self.codec, self.unseen.pixels.to(self.unet.device))
        noise = fixed_noise(latents)
        errors = {
            f"held-out loss at {t}": float(
                self.error(
                    latents,
                    noise,
                    torch.full((len(latents),), t, device=latents.device),
                    self.unseen.captions,
                )
            )
            for t in BANDS
        }
        return errors | {"held-out loss": sum(errors.values()) / len(errors)}

    def picture(self) -> Image.Image:
        """`PROMPTS`, one picture each."""
        shown: Any = self.pipeline()(
            list(PROMPTS),
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=torch.Generator().manual_seed(0),
        ).images  # type: ignore[union-attr]
        return picture_grid([shown[i : i + 8] for i in range(0, len(shown), 8)], zoom=2)

    def pipeline(self) -> StableDiffusionPipeline:
        """The parts as diffusers' pipeline."""
        return assemble(self.codec, self.text_encoder, self.tokenizer, self.unet, self.scheduler)

    def export(self, output: Path) -> None:
        """The whole pipeline in diffusers' folder format."""
        self.pipeline().save_pretrained(output / "base")


def some_dropped(captions: Sequence[str], share: float, generator: Generator) -> list[str]:
    """The captions, each emptied with a probability of `share`."""
    drop = torch.rand(len(captions), generator=generator, device=generator.device) < share
    return ["" if dropped else text for text, dropped in zip(captions, drop, strict=True)]


def frozen_base(output: Path) -> Any:
    """The trained base's pipeline, quiet, its models frozen and its U-Net laid out for convolutions."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(output / "base", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    for model in (pipe.unet, pipe.text_encoder, pipe.vae):
        model.requires_grad_(False)
    return pipe


def build_unet(
    recipe: BaseRecipe, channels: int, context_dim: int, *, sample_size: int
) -> UNet2DConditionModel:
    """A small U-Net with cross-attention at every width, for latents of `sample_size` × `sample_size`."""
    count = len(recipe.widths)
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.widths,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * count,
        up_block_types=("CrossAttnUpBlock2D",) * count,
        cross_attention_dim=context_dim,
        attention_head_dim=recipe.heads,
        norm_num_groups=16,
    )
    return unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule (arXiv 2102.09672) rescaled to end without signal."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # without effect on trailing steps, but diffusers' pipelines insist
    )


def velocity_error(
    unet: Callable[..., Any],
    scheduler: DDIMScheduler,
    latents: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    timesteps: Int[Tensor, " batch"],
    text_embeddings: Float[Tensor, "batch text_len context_dim"],
) -> Float[Tensor, ""]:
    """‖v - v_θ(x_t, c_t, t)‖², mean over everything."""
    steps = cast(torch.IntTensor, timesteps)
    noisy_latents = scheduler.add_noise(latents, noise, steps).contiguous(memory_format=torch.channels_last)
    velocity = scheduler.get_velocity(latents, noise, steps)
    predicted = unet(noisy_latents, timesteps, text_embeddings).sample
    return F.mse_loss(predicted.float(), velocity.float())


def sample_timesteps(count: int, generator: Generator, train_steps: int = 1000) -> Int[Tensor, " count"]:
    """Times whose logit is normal: the middle more often than the ends."""
    logit = torch.randn(count, generator=generator, device=generator.device) + TIMESTEP_LOCATION
    share = logit.sigmoid()
    return (share * train_steps).long().clamp(max=train_steps - 1)


def encode_latents(
    codec: PatchAutoencoder, pixels: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, "batch channels height width"]:
    """Pictures → latents at the scale the U-Net works in."""
    return codec.encode(pixels).latent_dist.mode() * codec.config["scaling_factor"]  # type: ignore[union-attr]


def encode_texts(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]
) -> Float[Tensor, "batch text_len context_dim"]:
    """Captions → text embeddings, as diffusers' pipeline makes them."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state


def unseen_batch(recipe: Recipe) -> Batch:
    """A fixed batch of held-out pictures."""
    pictures = EmojiPictures(in_cache(recipe.data), held_out=True)
    return EmojiBatches(pictures, LOOK, seed=recipe.seed)[0]


def fixed_noise(latents: Tensor) -> Tensor:
    """The same noise every time, whatever the device."""
    return torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(latents.device)
