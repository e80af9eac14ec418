"""The base model's loss: predict the velocity of a noised latent from its caption.

    x_t = √ᾱ x + √(1-ᾱ) ε        v = √ᾱ ε - √(1-ᾱ) x        loss = ‖v - v_θ(x_t, c_t, t)‖²

v-prediction (arXiv 2202.00512) on a schedule with no signal left at its end (arXiv 2305.08891), at
logit-normal times (arXiv 2403.03206). The text encoder is trained with the U-Net, at a lower rate.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from PIL import Image
from rich.progress import track
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.captions import sample_caption, write_full_caption
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.objectives.stage import StageObjective
from imprompt.lab.making.recipe import BaseRecipe, ControlRecipe, StyleRecipe
from imprompt.lab.making.tokenizer import train_tokenizer
from imprompt.mini import PatchAutoencoder, assemble, find_part, pipeline
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.sheets import picture_grid

LOOK = 512
"""The number of held-out pictures for losses."""

BANDS = (100, 300, 500, 700, 900)
"""The timesteps at which the held-out loss is measured."""

TIMESTEP_LOCATION = -0.3
"""The center of the times' logit: a little below the middle, as latents are weaker than the noise."""

SHOWN_GUIDANCE = 3.0
SHOWN_STEPS = 25
PROMPTS = (
    "adventurer style, long pink hair, tan skin, smiling, on a yellow background",
    "avataaars style, brown beard, bald, brown skin, green clothes, on a white background",
    "big-ears style, ginger pigtails, pale skin, laughing, on a teal background",
    "big-smile style, blue mohawk, dark skin, sunglasses, on a pink background",
    "yellow robot, on a blue background",
    "dylan style, spiky green hair, light skin, angry, on an orange background",
    "micah style, black bob, light skin, glasses, red clothes, on a gray background",
    "miniavs style, teal ponytail, brown skin, orange clothes, on a white background",
    "peeps style, red bun, dark skin, surprised, yellow clothes, on a green background",
    "personas style, curly white hair, tan skin, moustache, navy clothes, on a beige background",
    "pixel-art style, short purple hair, pale skin, sunglasses, black clothes, on a red background",
    "toon style, long blonde hair, tan skin, sad, teal clothes, on a white background",
    "a person with dreadlocks, smiling", "sunglasses", "a person, on a purple background", "",
)  # fmt: skip
"""What the sample grid shows."""


class BaseObjective(StageObjective):
    """U-Net and text encoder on the autoencoder's latents, which are computed once."""

    def __init__(self, recipe: BaseRecipe, output: Path) -> None:
        super().__init__(recipe)
        codec: Any = PatchAutoencoder.from_pretrained(output / "vae")
        self.codec = codec.requires_grad_(False)
        self.latents = encode_all(self.codec, self.drawings)
        self.tokenizer = load_tokenizer(output, self.drawings, recipe)
        self.text_encoder = build_text_encoder(recipe, self.tokenizer)
        channels, size = self.latents.shape[1], self.latents.shape[-1]
        self.unet = build_unet(recipe, channels, recipe.text_width, sample_size=size)
        # Plain products and a softmax: on a CPU 1.5 times as fast as fused attention with its backward pass.
        self.unet.set_attn_processor(AttnProcessor())
        self.trained_unet = self.compile_trained(self.unet)
        self.scheduler = build_scheduler()
        pixels, self.held_out_captions = load_held_out_pictures(recipe.data)
        self.held_out_latents = encode_latents(self.codec, pixels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the U-Net at the recipe's rate, and the text encoder at its own."""
        recipe = self.recipe
        return [
            {"params": list(self.unet.parameters()), "lr": recipe.learning_rate},
            {"params": list(self.text_encoder.parameters()), "lr": recipe.text_learning_rate},
        ]

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the velocity's squared error at random times; some captions are dropped."""
        latents = self.latents[batch.rows].float().to(self.device)
        draws = draw_step(self.drawings, batch, latents, self.recipe.text_drop)
        return {"loss": self.error(latents, *draws, unet=self.trained_unet[0])}

    def error(
        self,
        latents: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
        *,
        unet: Callable[..., Any] | None = None,
    ) -> Float[Tensor, ""]:
        """Return ‖v - v_θ‖² for given noise and times."""
        text_embeddings = encode_texts(self.text_encoder, self.tokenizer, captions)
        return velocity_error(
            self.unet if unet is None else unet, self.scheduler, latents, noise, timesteps, text_embeddings
        )

    def measure_held_out(self) -> dict[str, float]:
        """Return the loss on unseen combinations, by noise level, with fixed noise."""
        latents = self.held_out_latents.to(self.device)
        errors = {
            f"held-out loss at {t}": measure_held_out_error(latents, self.compute_held_out_loss, bands=(t,))
            for t in BANDS
        }
        return errors | {"held-out loss": sum(errors.values()) / len(errors)}

    def compute_held_out_loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Float[Tensor, ""]:
        """Return the loss under the held-out captions."""
        return self.error(latents, noise, timesteps, self.held_out_captions)

    def draw_samples(self) -> Image.Image:
        """Draw `PROMPTS`, two images each."""
        pipe = self.pipeline()
        rows = []
        for seed in range(2):
            generator = Generator().manual_seed(seed)
            shown: Any = pipe(
                list(PROMPTS),
                num_inference_steps=SHOWN_STEPS,
                guidance_scale=SHOWN_GUIDANCE,
                generator=generator,
            ).images  # type: ignore[union-attr]
            rows += [shown[i : i + 8] for i in range(0, len(shown), 8)]
        return picture_grid(rows)

    def pipeline(self) -> StableDiffusionPipeline:
        """Assemble the parts as diffusers' pipeline."""
        return assemble(self.codec, self.text_encoder, self.tokenizer, self.unet, self.scheduler)

    def export(self, output: Path) -> None:
        """Write the whole pipeline in diffusers' folder format."""
        self.pipeline().save_pretrained(output / "base")


class FrozenBaseObjective(StageObjective):
    """An objective with the frozen base, whose loss is the base's own."""

    def __init__(self, recipe: ControlRecipe | StyleRecipe, output: Path) -> None:
        super().__init__(recipe)
        self.base: Any = load_frozen_base(output)
        self.held_out_pixels, self.held_out_captions = load_held_out_pictures(recipe.data)

    def error(
        self,
        unet: Callable[..., Any],
        latents: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
    ) -> Float[Tensor, ""]:
        """Return ‖v - v_θ‖² of a U-Net for given noise, times and captions."""
        with torch.no_grad():
            texts = encode_texts(self.base.text_encoder, self.base.tokenizer, captions)
        return velocity_error(unet, self.base.scheduler, latents, noise, timesteps, texts)


class StepDraws(NamedTuple):
    """The random draws of a step: a loss' arguments after the latents."""

    noise: Float[Tensor, "batch channels height width"]
    timesteps: Int[Tensor, " batch"]
    captions: list[str]


def draw_step(
    drawings: Drawings,
    batch: DrawingBatch,
    latents: Float[Tensor, "batch channels height width"],
    text_drop: float,
) -> StepDraws:
    """Draw captions, times and noise of a step; some captions are dropped."""
    rng, generator = batch.make_random(), batch.make_generator(latents.device)
    captions = [sample_caption(drawings.characters[row], rng) for row in batch.rows]
    captions = drop_some(captions, text_drop, rng)
    timesteps = sample_timesteps(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return StepDraws(noise, timesteps, captions)


def drop_some(captions: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """Empty each caption with a probability of `share`."""
    return ["" if rng.random() < share else caption for caption in captions]


@torch.no_grad()
def encode_all(codec: PatchAutoencoder, drawings: Drawings) -> Float[Tensor, "drawings channels _ _"]:
    """Encode all drawings to latents, as float16."""
    starts = track(range(0, len(drawings), 1000), description="latents")
    pieces = [encode_latents(codec, to_pixels(drawings.pictures[i : i + 1000])).half() for i in starts]
    return torch.cat(pieces)


def load_held_out_pictures(data: str) -> tuple[Float[Tensor, "batch 3 size size"], list[str]]:
    """Load pixels and full captions of fixed unseen combinations."""
    drawings = Drawings(resolve_in_cache(data), "combinations")
    captions = [write_full_caption(character) for character in drawings.characters[:LOOK]]
    return to_pixels(drawings.pictures[:LOOK]), captions


def measure_held_out_error(
    latents: Float[Tensor, "batch channels height width"],
    error: Callable[[Tensor, Tensor, Tensor], Tensor],
    bands: Sequence[int] = BANDS,
) -> float:
    """Return the mean of `error(latents, noise, timesteps)` over noise levels, with fixed noise."""
    noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(latents.device)
    times = [torch.full((len(latents),), band, device=latents.device) for band in bands]
    return sum(float(error(latents, noise, time)) for time in times) / len(times)


def load_frozen_base(output: Path) -> Any:
    """Load the base in `output`, or the embedded one if there is none: frozen, its U-Net channels last."""
    pipe: Any = pipeline(weights=find_part(output, "base").parent)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.unet.set_attn_processor(AttnProcessor())  # as in BaseObjective
    for model in (pipe.unet, pipe.text_encoder, pipe.vae):
        model.requires_grad_(False)
    return pipe


def load_tokenizer(output: Path, drawings: Drawings, recipe: BaseRecipe) -> CLIPTokenizer:
    """Load the model's tokenizer; the first run trains it on captions of the data."""
    folder = output / "tokenizer"
    if not folder.is_dir():
        rng = random.Random(recipe.seed)
        captions = [sample_caption(character, rng) for character in drawings.characters[:20_000]]
        captions += [prompt for prompt in PROMPTS if prompt]
        train_tokenizer(captions, size=recipe.vocabulary, length=recipe.text_length).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(recipe: BaseRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a small CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_width // 64,
        max_position_embeddings=recipe.text_length,
        projection_dim=recipe.text_width,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    return CLIPTextModel(config).train()


def build_unet(
    recipe: BaseRecipe, channels: int, context_dim: int, *, sample_size: int
) -> UNet2DConditionModel:
    """Build a small U-Net with cross-attention at every width, for square latents of `sample_size`."""
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
    """Build a cosine schedule (arXiv 2102.09672), rescaled to end without signal."""
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
    """Return ‖v - v_θ(x_t, c_t, t)‖², the mean over everything."""
    steps = cast(torch.IntTensor, timesteps)
    noisy_latents = scheduler.add_noise(latents, noise, steps).contiguous(memory_format=torch.channels_last)
    velocity = scheduler.get_velocity(latents, noise, steps)
    predicted = unet(noisy_latents, timesteps, text_embeddings).sample
    return F.mse_loss(predicted.float(), velocity.float())


def sample_timesteps(count: int, generator: Generator, train_steps: int = 1000) -> Int[Tensor, " count"]:
    """Sample times whose logit is normal: more often in the middle than at the ends."""
    logit = torch.randn(count, generator=generator, device=generator.device) + TIMESTEP_LOCATION
    return (logit.sigmoid() * train_steps).long().clamp(max=train_steps - 1)


@torch.no_grad()
def encode_latents(
    codec: PatchAutoencoder, pixels: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, "batch channels height width"]:
    """Encode pictures to latents at the U-Net's scale."""
    return codec.encode(pixels).latent_dist.mode() * codec.config["scaling_factor"]  # type: ignore[union-attr]


def encode_texts(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]
) -> Float[Tensor, "batch text_len context_dim"]:
    """Encode captions as diffusers' pipeline does."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state
