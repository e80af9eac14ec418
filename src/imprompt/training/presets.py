"""Presets: the usual settings of training for each base and variant.

The paper (Ye et al. 2023, section 4.1) uses AdamW, learning rate 1e-4, weight decay 0.01, a center crop of
512 px, batch 64, and drops image, text and both with a probability of 5 % each. It mentions neither averaged
weights nor a schedule, and the presets of its bases have none.

Presets that end in "-fine-tune" start from the adapter that the rest of their name names. They are for few
pictures, on which new weights would learn little. Presets that end in "-lcm" train a LoRA with which the base
needs few steps.
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

_MINI_FACE: Settings = {
    "adapter": {"tokens": 4, "lora_rank": 4, "face_dim": 128, "face_model": "mini"},
}

_MINI_TRANSFORMER: Settings = {
    "base": {"model": "mini:transformer", "image_encoder": "mini"},
    "loss": {"image_drop": 0.1, "text_drop": 0.1, "both_drop": 0.0},
    "training": {"steps": 2300, "cooldown_steps": 1000},
    "watch": {"guidance_scale": 3.0},
}
_FLUX: Settings = {
    "base": {"model": "black-forest-labs/FLUX.1-dev"},
    "data": {"size": 512},
    "cache": {"precision": "bf16", "shard_size": 64, "batch_size": 4},
    "loss": {"timesteps": "logit-normal"},
    "training": {"batch_size": 32, "gradient_checkpointing": True},
    "watch": {"guidance_scale": 4.0, "references": 4, "scales": (0.0, 0.7, 1.0)},
}
"""FLUX.1 [dev]. Noise levels as in x-flux, train_flux_deepspeed.py: σ = sigmoid(normal)."""
_FLUX_XLABS: Settings = {
    "base": {"image_encoder": "openai/clip-vit-large-patch14"},
    "adapter": {"variant": "flux-xlabs", "tokens": 16},
    "data": {"buckets": True},
    "loss": {"guidance_scale": 4.0},
    "training": {"steps": 150_000},
}
"""As the model card of XLabs' second adapter: 16 tokens, pictures of 512 px with their aspect ratio kept."""
_FLUX_INSTANTX: Settings = {
    "base": {"image_encoder": "google/siglip-so400m-patch14-384"},
    "adapter": {"variant": "flux-instantx", "tokens": 128},
    "data": {"reference_crop": "stretch"},
    "training": {"batch_size": 128, "steps": 80_000},
}
"""As InstantX' model card: 128 tokens, a batch of 128, 80,000 steps."""
_SD35: Settings = {
    "base": {
        "model": "stabilityai/stable-diffusion-3.5-large",
        "image_encoder": "google/siglip-so400m-patch14-384",
    },
    "adapter": {"variant": "sd35", "tokens": 64},
    "data": {"size": 1024, "reference_crop": "stretch"},
    "cache": {"precision": "bf16", "shard_size": 64, "batch_size": 4},
    "loss": {"timesteps": "logit-normal"},
    "training": {"batch_size": 32, "gradient_checkpointing": True},
    "watch": {"guidance_scale": 3.5, "references": 4, "scales": (0.0, 0.6, 1.0)},
}
"""InstantX published no settings of the training: these are the paper's, with SD3's noise levels."""

_FINE_TUNE: Settings = {
    "data": {"held_out": 0.2},
    "training": {
        "steps": 1000,
        "batch_size": 8,
        "learning_rate": 1e-5,
        "warmup_steps": 50,
        "cooldown_steps": 200,
        "log_every": 10,
        "save_every": 100,
        "check_every": 50,
        "sample_every": 100,
    },
}


def merge_settings(settings: Settings, over: Settings) -> dict[str, Any]:
    """Override settings with others, group by group."""
    merged = dict(settings)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge_settings(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def _merge(*layers: Settings) -> Settings:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge_settings(merged, layer)
    return merged


def _fine_tune(name: str, preset: Settings) -> Settings:
    return _merge(preset, {"adapter": {"start": name}}, _FINE_TUNE)


_LCM: Settings = {
    "distillation": {"rank": 64},
    "loss": {"image_drop": 0.0, "text_drop": 0.0, "both_drop": 0.0},
    "training": {
        "steps": 4000,
        "batch_size": 96,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "warmup_steps": 100,
        "cooldown_steps": 1000,
        "ema_decay": 0.95,
        "save_every": 250,
        "sample_every": 500,
    },
}
"""As in diffusers' `train_lcm_distill_lora_sd_wds.py`, with averaged weights and a cool-down."""
_MINI_FEW_STEPS: Settings = {
    "adapter": {"start": "mini"},
    "distillation": {
        "rank": 16,
        "method": "progressive",
        "guidance_min": 3.0,
        "guidance_max": 3.0,
        "solver_steps": 4,
        "solver_substeps": 4,
    },
    "loss": {"image_drop": 0.3, "text_drop": 0.3, "both_drop": 0.0, "timesteps": "uniform"},
    "training": {
        "steps": 1200,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "warmup_steps": 50,
        "cooldown_steps": 500,
        "ema_decay": 0.98,
        "sample_every": 250,
        "check_every": 250,
    },
    "watch": {"guidance_scale": 3.0},
}

_FROM_NEW_WEIGHTS: Mapping[str, Settings] = {
    "mini": _MINI,
    "mini-plus": _merge(_MINI, {"adapter": {"variant": "plus", "tokens": 16}}),
    "mini-face": _merge(_MINI, _MINI_FACE, {"adapter": {"variant": "faceid"}}),
    "mini-face-plus": _merge(_MINI, _MINI_FACE, {"adapter": {"variant": "faceid-plusv2"}}),
    "sd15": _merge(_PAPER, _SD15, _VIT_H),
    "sd15-plus": _merge(_PAPER, _SD15, _VIT_H, _PLUS),
    "sd15-full-face": _merge(_PAPER, _SD15, _VIT_H, {"adapter": {"variant": "full-face", "tokens": 257}}),
    "sd15-faceid": _merge(_PAPER, _SD15, _FACE),
    "sd15-faceid-plusv2": _merge(_PAPER, _SD15, _VIT_H, _FACE, {"adapter": {"variant": "faceid-plusv2"}}),
    "sdxl": _merge(_PAPER, _SDXL, _VIT_BIGG),
    "sdxl-plus": _merge(_PAPER, _SDXL, _VIT_H, _PLUS),
    "sdxl-faceid": _merge(_PAPER, _SDXL, _FACE),
    "mini-transformer-xlabs": _merge(
        _MINI, _MINI_TRANSFORMER, {"adapter": {"variant": "flux-xlabs", "tokens": 4}}
    ),
    "mini-transformer-instantx": _merge(
        _MINI, _MINI_TRANSFORMER, {"adapter": {"variant": "flux-instantx", "tokens": 16}}
    ),
    "flux-xlabs": _merge(_PAPER, _FLUX, _FLUX_XLABS),
    "flux-instantx": _merge(_PAPER, _FLUX, _FLUX_INSTANTX),
    "sd35": _merge(_PAPER, _SD35),
}
PRESETS: Mapping[str, Settings] = {
    **_FROM_NEW_WEIGHTS,
    **{
        f"{name}-fine-tune": _fine_tune(name, _FROM_NEW_WEIGHTS[name])
        for name in ("mini", "mini-plus", "sd15", "sd15-plus", "sdxl", "sdxl-plus")
    },
    "mini-few-steps": _merge(_MINI, _LCM, _MINI_FEW_STEPS),
    "sd15-lcm": _merge(_PAPER, _SD15, _LCM),
    "sdxl-lcm": _merge(_PAPER, _SDXL, _LCM),
}
"""Short name of a base and a variant → settings; `imprompt train --presets` prints them."""


def find_preset(name: object, source: str) -> Settings:
    """Look up a preset.

    Raises:
        ConfigError: there is none of that name
    """
    if name in PRESETS:
        return PRESETS[str(name)]
    near = difflib.get_close_matches(str(name), PRESETS, n=1)
    perhaps = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{source}: unknown preset {name!r}{perhaps} The presets are: {', '.join(PRESETS)}")
