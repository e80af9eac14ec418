"""Tiny random-weight models: everything a whole pipeline needs, made in milliseconds, no downloads.

Every builder takes a seed and leaves torch's global random state as it was, so the same call always gives the
same weights. Widths are distinct on purpose: a transposed axis or a swapped width cannot hide.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.projection import LinearProjection

EMBEDDING_DIM = 14
"""Width of the tiny image encoder's projected embedding."""

SD_CONTEXT, XL_CONTEXT_1, XL_CONTEXT_2 = 20, 12, 16
CONTEXT_LEN = 11

P = ParamSpec("P")
T = TypeVar("T")


def seeded(build: Callable[P, T]) -> Callable[P, T]:
    """Seed torch with the builder's keyword `seed` (default 0) for the time of the call, then restore it."""

    @functools.wraps(build)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(kwargs.get("seed", 0)))  # pyright: ignore[reportArgumentType]
            return build(*args, **kwargs)

    return wrapped


@seeded
def sd_unet(*, seed: int = 0) -> UNet2DConditionModel:
    """SD-like: four cross-attention layers (official N = 1, 3, 5, 7), 8×8 latents of 4 channels."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=SD_CONTEXT,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@seeded
def xl_unet(*, seed: int = 0) -> UNet2DConditionModel:
    """SDXL-like: several transformer blocks per attention, text and size conditioning."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=XL_CONTEXT_1 + XL_CONTEXT_2,
        attention_head_dim=(2, 4),  # pyright: ignore[reportArgumentType]
        transformer_layers_per_block=(1, 2),  # pyright: ignore[reportArgumentType]
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + XL_CONTEXT_2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


@seeded
def vision_model(*, seed: int = 0) -> CLIPVisionModelWithProjection:
    """A CLIP image encoder for 28 px pictures: embedding 14 wide, hidden states 24 wide."""
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        projection_dim=EMBEDDING_DIM,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=28,
        patch_size=14,
    )
    return CLIPVisionModelWithProjection(config).eval()


def text_config(width: int, projection_dim: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection_dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LEN,
        bos_token_id=vocabulary()["<|startoftext|>"],
        eos_token_id=vocabulary()["<|endoftext|>"],
    )


@seeded
def text_model(*, seed: int = 0, width: int = SD_CONTEXT) -> CLIPTextModel:
    return CLIPTextModel(text_config(width, width)).eval()


@seeded
def text_model_with_projection(*, seed: int = 0, width: int = XL_CONTEXT_2) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(text_config(width, XL_CONTEXT_2)).eval()


@functools.cache
def vocabulary() -> dict[str, int]:
    """Letters and digits, alone and at the end of a word: every lower-case prompt is spelled out."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!-"
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {symbol: index for index, symbol in enumerate(symbols)}


def tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps(vocabulary()))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=CONTEXT_LEN)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@seeded
def autoencoder(*, seed: int = 0) -> AutoencoderKL:
    """Two blocks: pictures are twice as wide as latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        sample_size=16,
    ).eval()


def sd_pipeline(*, seed: int = 0, image_encoder: bool = False) -> StableDiffusionPipeline:
    """A whole Stable Diffusion pipeline, 16 px; with an image encoder for diffusers' own adapter."""
    pipe = StableDiffusionPipeline(
        vae=autoencoder(seed=seed),
        text_encoder=text_model(seed=seed + 1),
        tokenizer=tokenizer(),
        unet=sd_unet(seed=seed + 2),
        scheduler=scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=image_processor(),  # pyright: ignore[reportArgumentType]
        image_encoder=vision_model(seed=seed + 3) if image_encoder else None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_pipeline(*, seed: int = 0, image_encoder: bool = False) -> StableDiffusionXLPipeline:
    """A whole SDXL pipeline, 16 px, with both text encoders."""
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(seed=seed),
        text_encoder=text_model(seed=seed + 1, width=XL_CONTEXT_1),
        text_encoder_2=text_model_with_projection(seed=seed + 4),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=xl_unet(seed=seed + 2),
        scheduler=scheduler(),  # pyright: ignore[reportArgumentType]
        feature_extractor=image_processor(),  # pyright: ignore[reportArgumentType]
        image_encoder=vision_model(seed=seed + 3) if image_encoder else None,  # pyright: ignore[reportArgumentType]
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_processor() -> CLIPImageProcessorPil:
    """The preprocessing that goes with `vision_model`."""
    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@seeded
def picture(*, seed: int = 0, width: int = 37, height: int = 31) -> Image.Image:
    """A random picture whose sides are not equal nor multiples of anything: a coarse pattern, enlarged."""
    pixels = torch.randint(0, 256, (5, 6, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB").resize((width, height), Image.Resampling.BICUBIC)


@seeded
def embedding(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random image embeddings of the given leading shape, `EMBEDDING_DIM` wide."""
    return torch.randn(*shape, EMBEDDING_DIM)


@seeded
def unet_input(unet: UNet2DConditionModel, *, batch: int = 2, seed: int = 0) -> dict[str, object]:
    """Keyword arguments for one forward pass: call `unet(**unet_input(unet)).sample`."""
    arguments: dict[str, object] = {
        "sample": torch.randn(batch, 4, 8, 8),
        "timestep": torch.randint(0, 1000, (batch,)),
        "encoder_hidden_states": torch.randn(batch, CONTEXT_LEN, unet.config["cross_attention_dim"]),
    }
    if unet.config["addition_embed_type"] == "text_time":
        added = {"text_embeds": torch.randn(batch, XL_CONTEXT_2), "time_ids": torch.rand(batch, 6)}
        arguments["added_cond_kwargs"] = added
    return arguments


@seeded
def adapter(unet: UNet2DConditionModel, *, seed: int = 0, tokens: int = 4) -> ImagePromptAdapter:
    """An adapter as if trained: all weights random, strong enough to change the pictures clearly."""
    projection = LinearProjection(EMBEDDING_DIM, unet.config["cross_attention_dim"], tokens)
    made = ImagePromptAdapter.for_unet(unet, projection)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.requires_grad_(False)
