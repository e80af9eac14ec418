"""Where a mode acts, drawn; imports the library, so the command imports this late."""

from pathlib import Path
from typing import Any, cast, get_args

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from imprompt.attention.layer_weights import Convention, plot_layers
from imprompt.attention.layers import cross_attention_layers
from imprompt.errors import ConfigError, UnknownModel
from imprompt.mini import WEIGHTS

_SLIM: dict[str, Any] = {"norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
_BASES: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (8, 8, 8, 8), **_SLIM},
    "sdxl": {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        **_SLIM,
    },
}
"""The blocks of well-known bases; only the layers' names are wanted, so they are slim."""


def drawn_layers(mode: str, base: str, convention: str) -> Image.Image:
    """Draw which layers of a base a mode lets act.

    Args:
        mode: see `imprompt.attention.layer_weights`
        base: "mini", "sd15", "sdxl", or a folder in diffusers' format
        convention: whose sets the modes are

    Raises:
        InvalidReference: no such mode on this base
        UnknownModel: no such base
        ConfigError: no such convention
    """
    if convention not in get_args(Convention):
        known = ", ".join(get_args(Convention))
        raise ConfigError(f"--convention must be one of {known}, not {convention!r}")
    return plot_layers(mode, layer_names(base), convention=cast(Convention, convention))


def layer_names(base: str) -> dict[int, str]:
    """Official number N → module name of every cross-attention layer of a base."""
    with torch.device("meta"):
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(_config(base)))
    return {number: name for number, (name, _) in cross_attention_layers(unet).items()}


def _config(base: str) -> dict[str, Any]:
    if base in _BASES:
        return _BASES[base]
    folder = (WEIGHTS / "base" if base == "mini" else Path(base)) / "unet"
    if not (folder / "config.json").is_file():
        raise UnknownModel(
            f"no base {base!r}: it is mini, {', '.join(_BASES)} or a folder in diffusers' format"
        )
    return cast(dict[str, Any], UNet2DConditionModel.load_config(folder))
