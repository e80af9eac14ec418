"""What `training_step.py` measures on: bases, from the tests' tiny one to Stable Diffusion 1.5's shapes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from imprompt import mini
from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import DTYPES, FrozenBase


class Case(NamedTuple):
    """A base to measure on, and how: samples of a step, steps of a round, pictures on the disk."""

    base: Callable[[TrainingConfig, torch.device], FrozenBase]
    preset: str
    size: int
    batch: int
    steps: int
    rounds: int
    pictures: int
    picture_size: tuple[int, int]


def write_pictures(folder: Path, case: Case) -> list[Path]:
    """JPEG files with captions, in the order of the cache's rows."""
    folder.mkdir()
    for number in range(case.pictures):
        noise = torch.randint(0, 256, (9, 11, 3), generator=torch.Generator().manual_seed(number))
        picture = Image.fromarray(noise.to(torch.uint8).numpy())
        picture.resize(case.picture_size, Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg")
        (folder / f"{number:04d}.txt").write_text(f"a picture of thing number {number}")
    return sorted(folder.glob("*.jpg"))


def tiny_base(config: TrainingConfig, device: torch.device) -> FrozenBase:
    """The tests' random model."""
    tiny = tests_models()
    encoder = ImageEncoder(tiny.vision_model(seed=3))
    dtype = DTYPES[config.training.precision]
    return FrozenBase(tiny.sd_pipeline(), encoder, device=device, dtype=dtype)


def tests_models() -> Any:
    tests = str(Path(__file__).parent.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    import tiny  # pyright: ignore[reportMissingImports]

    return tiny


def embedded_base(config: TrainingConfig, device: torch.device) -> FrozenBase:
    """The embedded model."""
    encoder = load_image_encoder(mini.WEIGHTS / "image_encoder")
    return FrozenBase(mini.pipeline(), encoder, device=device, dtype=DTYPES[config.training.precision])


def sd15_base(config: TrainingConfig, device: torch.device) -> FrozenBase:
    """Stable Diffusion 1.5's shapes and ViT-H/14's, with random weights and a toy's tokenizer."""
    tiny = tests_models()
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 77
    torch.manual_seed(0)
    with device:
        text = CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
        vision = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1024,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        )
        pipe = cast(Any, StableDiffusionPipeline)(
            vae=cast(Any, AutoencoderKL)(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                sample_size=512,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            scheduler=tiny.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        encoder = ImageEncoder(CLIPVisionModelWithProjection(vision))
    return FrozenBase(pipe, encoder, device=device, dtype=DTYPES[config.training.precision])


CASES = {
    "tiny": Case(tiny_base, "sd15", 16, batch=4, steps=20, rounds=15, pictures=12, picture_size=(37, 31)),
    "embedded": Case(
        embedded_base, "mini", 64, batch=16, steps=4, rounds=9, pictures=40, picture_size=(64, 64)
    ),
    "sd15": Case(sd15_base, "sd15", 512, batch=1, steps=1, rounds=3, pictures=3, picture_size=(768, 640)),
}
