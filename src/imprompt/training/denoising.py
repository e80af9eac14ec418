"""One call of a frozen base in training: noisy latents in, prediction out, whatever kind of base it is.

    U-Net    ε or v = unet(x_t, t, text; pooled text and sizes)
    FLUX.1   v = transformer(pack(x_σ), σ, text, pooled text; guidance)      2 × 2 latents are one token
    SD3.5    v = transformer(x_σ, 1000 σ, text, pooled text)

Pipelines make the same calls (diffusers, `FluxPipeline.__call__` and `StableDiffusion3Pipeline.__call__`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from imprompt.attention.denoiser_call import is_kind

PACKED = 2
"""The height and width in latents of a token of FLUX.1."""


def predict(
    denoiser: Any,
    noisy: Float[Tensor, "batch channels height width"],
    times: Shaped[Tensor, " batch"],
    text: Float[Tensor, "batch text_len context_dim"],
    added: Mapping[str, Tensor] | None,
) -> Float[Tensor, "batch channels height width"]:
    """Return the prediction of a base.

    Args:
        denoiser: a U-Net, or a transformer of FLUX.1 or Stable Diffusion 3.5
        noisy: x_t
        times: in the scheduler's unit, 0 to 1000
        text: text embeddings
        added: what else the base takes; see `FrozenBase.build_added_conditions`
    """
    if is_kind(denoiser, "FluxTransformer2DModel"):
        return predict_flux(denoiser, noisy, times, text, added or {})
    if is_kind(denoiser, "SD3Transformer2DModel"):
        return denoiser(noisy, text, timestep=times, **(added or {})).sample
    return denoiser(noisy, times, text, added_cond_kwargs=added).sample


def predict_flux(
    transformer: Any,
    noisy: Float[Tensor, "batch channels height width"],
    times: Shaped[Tensor, " batch"],
    text: Float[Tensor, "batch text_len context_dim"],
    added: Mapping[str, Tensor],
) -> Float[Tensor, "batch channels height width"]:
    """Return FLUX.1's prediction, packed and unpacked as by its pipeline."""
    height, width = noisy.shape[-2] // PACKED, noisy.shape[-1] // PACKED
    tokens = transformer(
        hidden_states=F.pixel_unshuffle(noisy, PACKED).flatten(2).transpose(1, 2),
        timestep=times / 1000,
        encoder_hidden_states=text,
        img_ids=number_places(height, width).to(noisy),
        txt_ids=noisy.new_zeros(text.shape[1], 3),
        **added,
    ).sample
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), PACKED)


def number_places(height: int, width: int) -> Float[Tensor, "tokens 3"]:
    """Return the rotary position of each token of FLUX.1: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
