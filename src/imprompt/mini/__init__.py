"""The embedded model: a text-to-image model in miniature, and its image-prompt adapter, in this package.

64 × 64 px emoji; diffusers' own pipeline, so everything written for Stable Diffusion works on it. How it was
made: recipes/mini-*.toml; what it is and is not: weights/README.md.
"""

from pathlib import Path
from typing import cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from imprompt.adapter import ImagePromptAdapter
from imprompt.checkpoint import load_adapter
from imprompt.encoder import load_image_encoder
from imprompt.errors import UnknownModel
from imprompt.mini.autoencoder import PatchAutoencoder

__all__ = ["WEIGHTS", "PatchAutoencoder", "adapter", "assemble", "pipeline"]

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped weights are: `base`, `adapter`, `image_encoder`, `judge`."""


def pipeline(*, weights: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The embedded base model as diffusers' text-to-image pipeline, 64 × 64 px, on the CPU.

    Args:
        weights: a folder as `imprompt mini train` makes it
        dtype: number format to compute in; the files hold float16

    Raises:
        UnknownModel: the weights are not there
    """
    base = existing(weights / "base")
    return assemble(
        cast(PatchAutoencoder, PatchAutoencoder.from_pretrained(base / "vae", torch_dtype=dtype)),
        CLIPTextModel.from_pretrained(base / "text_encoder", dtype=dtype),
        CLIPTokenizer.from_pretrained(base / "tokenizer"),
        cast(UNet2DConditionModel, UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=dtype)),
        cast(DDIMScheduler, DDIMScheduler.from_pretrained(base / "scheduler")),
    )


def assemble(
    autoencoder: PatchAutoencoder,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> StableDiffusionPipeline:
    """Put the parts together as diffusers' text-to-image pipeline, quiet and without a safety checker."""
    pipe = StableDiffusionPipeline(
        vae=autoencoder,  # type: ignore[arg-type]
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapter(*, weights: Path = WEIGHTS) -> ImagePromptAdapter:
    """The embedded model's image-prompt adapter, with its image encoder.

    Raises:
        UnknownModel: the weights are not there
    """
    folder = existing(weights / "adapter")
    encoder = load_image_encoder(existing(weights / "image_encoder"))
    return load_adapter(folder / "ip-adapter.safetensors", image_encoder=encoder).float()


def existing(folder: Path) -> Path:
    """The folder, or an error that says how to make it."""
    if not folder.is_dir():
        raise UnknownModel(
            f"the embedded model's {folder.name} is not in {folder.parent}: reinstall imprompt"
        )
    return folder
