"""Where a run starts from: for each base and variant the settings that it is usually trained with.

The paper's (Ye et al. 2023, section 4.1): AdamW, learning rate 1e-4, weight decay 0.01, 512 px centre crop,
image, text and both dropped 5 % of the time each, batch 64. It names no averaged weights and no schedule, and
neither do the presets of its bases.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from imprompt.errors import ConfigError

Settings = Mapping[str, Any]

_PAPER: Settings = {
    "training": {
        "steps": 1_000_000,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup_steps": 0,
        "ema_decay": 0.0,
        "precision": "bf16",
        "log_every": 50,
        "save_every": 2_000,
        "sample_every": 2_000,
        "check_every": 500,
    },
    "data": {"size": 512},
}

_SD15: Settings = {"base": {"model": "stable-diffusion-v1-5/stable-diffusion-v1-5"}}
_SDXL: Settings = {
    "base": {"model": "stabilityai/stable-diffusion-xl-base-1.0"},
    "data": {"size": 1024, "buckets": True},
    "training": {"gradient_checkpointing": True},
}
_VIT_H: Settings = {"base": {"image_encoder": "h94/IP-Adapter:models/image_encoder"}}
_VIT_BIGG: Settings = {"base": {"image_encoder": "h94/IP-Adapter:sdxl_models/image_encoder"}}
_PLUS: Settings = {"adapter": {"variant": "plus", "tokens": 16}, "cache": {"shard_size": 256}}
_FACE: Settings = {"adapter": {"variant": "faceid", "tokens": 4, "lora_rank": 128}}
_MINI: Settings = {
    "base": {"model": "mini"},
    "data": {"size": 128, "held_out_most": 64},
    "cache": {"precision": "fp32"},
    "loss": {"timesteps": "logit-normal", "timestep_location": -0.3},
    "training": {
        "steps": 900,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "cooldown_steps": 400,
        "ema_decay": 0.995,
        "precision": "auto",
        "log_every": 25,
        "save_every": 100,
        "check_every": 100,
        "sample_every": 300,
    },
}


def overlaid(settings: Settings, over: Settings) -> dict[str, Any]:
    """Settings with others laid over them, group by group."""
    merged = dict(settings)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _laid(*layers: Settings) -> Settings:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = overlaid(merged, layer)
    return merged


PRESETS: Mapping[str, Settings] = {
    "mini": _MINI,
    "mini-plus": _laid(_MINI, {"adapter": {"variant": "plus", "tokens": 16}}),
    "sd15": _laid(_PAPER, _SD15, _VIT_H),
    "sd15-plus": _laid(_PAPER, _SD15, _VIT_H, _PLUS),
    "sd15-full-face": _laid(_PAPER, _SD15, _VIT_H, {"adapter": {"variant": "full-face", "tokens": 257}}),
    "sd15-faceid": _laid(_PAPER, _SD15, _FACE),
    "sd15-faceid-plusv2": _laid(_PAPER, _SD15, _VIT_H, _FACE, {"adapter": {"variant": "faceid-plusv2"}}),
    "sdxl": _laid(_PAPER, _SDXL, _VIT_BIGG),
    "sdxl-plus": _laid(_PAPER, _SDXL, _VIT_H, _PLUS),
    "sdxl-faceid": _laid(_PAPER, _SDXL, _FACE),
}
"""Short name of a base and a variant → settings; `imprompt train --presets` prints them."""


def preset_named(name: object, source: str) -> Settings:
    """Look up a preset.

    Raises:
        ConfigError: there is none of that name
    """
    if name in PRESETS:
        return PRESETS[str(name)]
    near = difflib.get_close_matches(str(name), PRESETS, n=1)
    perhaps = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{source}: unknown preset {name!r}{perhaps} The presets are: {', '.join(PRESETS)}")
