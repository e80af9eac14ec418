"""Bases with a diffusion transformer, FLUX.1 and Stable Diffusion 3.5: what they honor of the settings.

FLUX.1 [dev] is distilled: its guidance scale is an input of the transformer, and a step is one call. True
guidance, u + w (c - u), takes a second call with the negative prompt (`true_cfg_scale` of diffusers).
"""

import inspect
from typing import Any

from imprompt.attention.denoiser_call import is_kind
from imprompt.attention.diffusers_internals import get_pipeline_denoiser
from imprompt.errors import ConfigError


def find_transformer(pipe: Any) -> Any:
    """Return the transformer of a pipeline; None if it has a U-Net."""
    return None if hasattr(pipe, "unet") else get_pipeline_denoiser(pipe)


def is_flux(pipe: Any) -> bool:
    """Whether the base of a pipeline is FLUX.1."""
    transformer = find_transformer(pipe)
    return transformer is not None and is_kind(transformer, "FluxTransformer2DModel")


def count_latent_channels(pipe: Any) -> int:
    """Return the number of channels of the latents that a base makes."""
    if (transformer := find_transformer(pipe)) is None:
        return pipe.unet.config.out_channels
    config = transformer.config
    channels = config.out_channels or config.in_channels
    return channels // 4 if is_flux(pipe) else channels  # FLUX.1 packs 2 × 2 of them into one.


def find_own_size(pipe: Any) -> int:
    """Return the side in pixels of the pictures that a base with a transformer was trained for."""
    return pipe.default_sample_size * pipe.vae_scale_factor


def find_patch(pipe: Any) -> int:
    """Return the side in latents of a patch: a picture has a whole number of patches."""
    transformer = find_transformer(pipe)
    if transformer is None:
        return 1
    return 2 if is_flux(pipe) else transformer.config.patch_size


def check_guidance(
    pipe: Any, *, negative_prompt: str, true_guidance_scale: float | int, has_interval: bool
) -> None:
    """Refuse guidance that a base does not have.

    Raises:
        ConfigError: a true guidance scale on a base whose guidance is true anyway, a negative prompt without
            true guidance on FLUX.1, or an interval on a base with a transformer
    """
    if true_guidance_scale != 1 and not is_flux(pipe):
        raise ConfigError(
            "true_guidance_scale is for FLUX.1; the guidance_scale of this base is true guidance"
        )
    if is_flux(pipe) and negative_prompt and true_guidance_scale <= 1:
        raise ConfigError(
            "FLUX.1 has no negative prompt without true guidance; set true_guidance_scale above 1, or leave "
            "the negative prompt out"
        )
    if has_interval and find_transformer(pipe) is not None:
        raise ConfigError("guidance_interval is not possible on this base; leave it out")


def build_guidance_arguments(
    pipe: Any, called: Any, *, negative_prompt: str, true_guidance_scale: float | int
) -> dict[str, Any]:
    """Return the arguments of a call of FLUX.1 for true guidance; none for other bases and without it.

    Args:
        pipe: the base
        called: the pipeline that is called, which may be another one of the same base
        negative_prompt: the text of what to avoid
        true_guidance_scale: w; at most 1 turns true guidance off

    Raises:
        ConfigError: diffusers' pipeline has no true guidance
    """
    if not is_flux(pipe) or true_guidance_scale <= 1:
        return {}
    if "true_cfg_scale" not in inspect.signature(type(called).__call__).parameters:
        raise ConfigError(f"{type(called).__name__} has no true guidance; leave true_guidance_scale out")
    return {"true_cfg_scale": true_guidance_scale, "negative_prompt": negative_prompt}
