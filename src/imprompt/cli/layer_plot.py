"""Plots of the layers on which a mode acts; this imports the library, so the command imports it late."""

from pathlib import Path
from typing import Any, cast, get_args

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from imprompt.attention.layer_weights import Convention, plot_layers
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.errors import ConfigError, UnknownModel
from imprompt.mini import WEIGHTS

_NARROW: dict[str, Any] = {"norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
_BASES: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (8, 8, 8, 8), **_NARROW},
    "sdxl": {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        **_NARROW,
    },
}
"""U-Net configurations of known bases; the blocks are narrow because only the layers' names are needed."""


def plot_mode(mode: str, base: str, convention: str) -> Image.Image:
    """Draw the layers of a base on which a mode acts.

    Args:
        mode: see `imprompt.attention.layer_weights`
        base: "mini", "sd15", "sdxl", or a folder in diffusers' format
        convention: the convention that defines the mode

    Raises:
        InvalidReference: the base has no such mode
        UnknownModel: there is no such base
        ConfigError: there is no such convention
    """
    if convention not in get_args(Convention):
        known = ", ".join(get_args(Convention))
        raise ConfigError(f"--convention must be one of {known}, not {convention!r}")
    return plot_layers(mode, list_layer_names(base), convention=cast(Convention, convention))


def list_layer_names(base: str) -> dict[int, str]:
    """Return official number N → module name of every cross-attention layer of a base."""
    with torch.device("meta"):
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(_unet_config(base)))
    return {number: name for number, (name, _) in find_cross_attention_layers(unet).items()}


def _unet_config(base: str) -> dict[str, Any]:
    if base in _BASES:
        return _BASES[base]
    folder = (WEIGHTS / "base" if base == "mini" else Path(base)) / "unet"
    if not (folder / "config.json").is_file():
        raise UnknownModel(
            f"there is no base {base!r}; use mini, {', '.join(_BASES)} or a folder in diffusers' format"
        )
    return cast(dict[str, Any], UNet2DConditionModel.load_config(folder))
