"""Plots of the layers on which a mode acts; this imports the library, so the command imports it late."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from PIL import Image

from imprompt.attention.layer_weights import Convention, plot_layers
from imprompt.checkpoint.published import EMBEDDED_WEIGHTS
from imprompt.errors import ConfigError, UnknownModel
from imprompt.runtime.foreign_models import first_line

_BASES: dict[str, dict[str, Any]] = {
    "sd15": {
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "layers_per_block": 2,
        "transformer_layers_per_block": 1,
    },
    "sdxl": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
    },
}
"""The parts of known bases' U-Net configurations that decide the names of layers."""

_COMMON_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
_COMMON_MIDDLE = "UNetMidBlock2DCrossAttn"


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
    config = _read_config(base)
    return _derive_layer_names(config) if _is_common(config) else _build_layer_names(config)


def _derive_layer_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Derive the names from the configuration of a common U-Net, because importing diffusers takes seconds.

    Blocks count down, up, then mid; every transformer block has a self- and a cross-attention.
    """
    down, up = config["down_block_types"], config["up_block_types"]
    layers, depths = (
        [value] * len(down) if isinstance(value, int) else list(value)
        for value in (config["layers_per_block"], config["transformer_layers_per_block"])
    )
    names = [
        *_list_block_names("down_blocks", down, layers, depths),
        *_list_block_names("up_blocks", up, [count + 1 for count in reversed(layers)], depths[::-1]),
        *(f"mid_block.attentions.0.transformer_blocks.{k}.attn2" for k in range(depths[-1])),
    ]
    return {2 * position + 1: name for position, name in enumerate(names)}


def _list_block_names(
    group: str, types: Sequence[str], layers: Sequence[int], depths: Sequence[int]
) -> Iterator[str]:
    for block, kind in enumerate(types):
        for layer in range(layers[block] if kind.startswith("CrossAttn") else 0):
            for depth in range(depths[block]):
                yield f"{group}.{block}.attentions.{layer}.transformer_blocks.{depth}.attn2"


def _is_common(config: Mapping[str, Any]) -> bool:
    """Whether a U-Net is like those of SD 1.5, SD 2.x and SDXL, whose names can be derived."""
    types = {*config.get("down_block_types", ["missing"]), *config.get("up_block_types", ["missing"])}
    counts = [config.get(name) for name in ("layers_per_block", "transformer_layers_per_block")]
    numbers = [one for count in counts for one in (count if isinstance(count, list) else [count])]
    return (
        types <= _COMMON_BLOCKS
        and config.get("mid_block_type", _COMMON_MIDDLE) == _COMMON_MIDDLE
        and all(type(number) is int for number in numbers)
        and not config.get("dual_cross_attention")
        and not config.get("reverse_transformer_layers_per_block")
        and config.get("attention_type", "default") == "default"
    )


def _build_layer_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Build the U-Net without weights, and read the names from it."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from imprompt.attention.layers import find_cross_attention_layers

    with torch.device("meta"):
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(dict(config)))
    return {number: name for number, (name, _) in find_cross_attention_layers(unet).items()}


def _read_config(base: str) -> Mapping[str, Any]:
    if base in _BASES:
        return _BASES[base]
    file = (EMBEDDED_WEIGHTS / "base" if base == "mini" else Path(base)) / "unet" / "config.json"
    if not file.is_file():
        raise UnknownModel(
            f"there is no base {base!r}; use mini, {', '.join(_BASES)} or a folder in diffusers' format"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownModel(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise UnknownModel(f"{file} is no configuration of a U-Net")
    return config
