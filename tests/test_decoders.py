"""Small and tiled decoders of diffusers, in every kind of generation that a base with a U-Net has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image

import tiny
from imprompt.errors import ConfigError
from imprompt.generation.base_parts import apply_base_options
from imprompt.generation.generate import generate_each
from imprompt.generation.job.base_options import BaseOptions
from imprompt.generation.settings import Control, Settings

KINDS = ("text", "start", "inpaint", "control", "control and start")


@tiny.seeded
def tiny_decoder(*, seed: int = 0) -> AutoencoderTiny:
    """An `AutoencoderTiny` with the latents of the tests' models: 4 channels, half as wide as the picture."""
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


def draw(pipe: Any, kind: str, size: int = 16) -> np.ndarray:
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = tiny.vision_model()  # pyright: ignore[reportAttributeAccessIssue]
    start = tiny.picture(width=size, height=size)
    settings: dict[str, Any] = {}
    if "start" in kind or kind == "inpaint":
        settings |= {"init_image": start, "strength": 1.0}
    if kind == "inpaint":
        settings["inpaint"] = Image.new("RGB", (size, size), "white")
    if "control" in kind:
        controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
        settings["controls"] = [Control(controlnet.eval(), start)]
    asked = Settings(steps=2, size=(size, size), **settings)
    return np.asarray(next(generate_each(pipe, [(adapter, [tiny.picture()])], asked))).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_autoencoder_tiny_draws_every_kind_of_picture(tmp_path: Path, kind: str) -> None:
    tiny_decoder().save_pretrained(tmp_path)
    own, other = tiny.sd_pipeline(), tiny.sd_pipeline()
    apply_base_options(other, BaseOptions(vae=str(tmp_path)))
    assert isinstance(other.vae, AutoencoderTiny)
    assert torch.equal(next(other.vae.parameters()), next(tiny_decoder().parameters()))
    before, after = draw(own, kind), draw(other, kind)
    assert before.shape == after.shape == (16, 16, 3)
    assert np.abs(before - after).max() > 1


def test_autoencoder_tiny_draws_on_sdxl_too(tmp_path: Path) -> None:
    tiny_decoder().save_pretrained(tmp_path)
    pipe = tiny.xl_pipeline()
    apply_base_options(pipe, BaseOptions(vae=str(tmp_path)))
    assert draw(pipe, "text").shape == (16, 16, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_draw_the_same_scene_in_every_kind_of_picture(kind: str) -> None:
    """Tiles overlap and are blended, so pixels differ a little where they meet."""
    whole, tiled = tiny.sd_pipeline(), tiny.sd_pipeline()
    apply_base_options(tiled, BaseOptions(tiling=True))
    assert tiled.vae.use_tiling
    assert tiled.vae.tile_latent_min_size == 8
    one, other = draw(whole, kind, size=48), draw(tiled, kind, size=48)
    assert one.shape == other.shape == (48, 48, 3)
    assert 0 < np.abs(one - other).mean() < 64


def test_a_decoder_for_other_latents_is_refused(tmp_path: Path) -> None:

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=16,
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has 16 latent channels; this base has 4"):
        apply_base_options(tiny.sd_pipeline(), BaseOptions(vae=str(tmp_path)))
