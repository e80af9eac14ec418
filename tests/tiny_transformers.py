"""Tiny random diffusion transformers, and adapters of every published kind for them."""

from typing import Any, Literal

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import nn

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.projection import (
    HiddenProjection,
    ImageProjection,
    LinearProjection,
    PerceiverShape,
    TimeResamplerProjection,
)

FLUX_CONTEXT, FLUX_POOLED, HEADS, HEAD_DIM = 20, 12, 3, 8
JOINT_CONTEXT, JOINT_POOLED = 18, 14
FEATURE_DIM, PATCHES = 10, 6
CHANNELS, JOINT_CHANNELS = 4, 16
SIDE = 8
"""Latents are SIDE high, and SIDE + 4 wide."""

Kind = Literal["flux-xlabs", "flux-instantx", "sd35"]
KINDS: tuple[Kind, ...] = ("flux-xlabs", "flux-instantx", "sd35")


@tiny.seeded
def flux_transformer(*, seed: int = 0, guidance: bool = False, channels: int = 4 * CHANNELS) -> Any:
    """Two double and three single blocks, three heads."""
    made = FluxTransformer2DModel(
        in_channels=channels,
        out_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=FLUX_CONTEXT,
        pooled_projection_dim=FLUX_POOLED,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    return disturb(made).eval()


@tiny.seeded
def joint_transformer(*, seed: int = 0, dual: tuple[int, ...] = ()) -> Any:
    """Three joint blocks, three heads; the last has no text output."""
    made = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=JOINT_CHANNELS,
        out_channels=JOINT_CHANNELS,
        num_layers=3,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=JOINT_CONTEXT,
        caption_projection_dim=HEADS * HEAD_DIM,
        pooled_projection_dim=JOINT_POOLED,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=dual,
    )
    return disturb(made).eval()


def disturb(model: Any) -> Any:
    """Make the weights of norms other than 1, so that a missing norm cannot hide."""
    for name, weight in model.named_parameters():
        if ".norm" in name and weight.ndim == 1 and "linear" not in name:
            nn.init.uniform_(weight, 0.5, 1.5)
    return model


def transformer(kind: Kind) -> Any:
    """The transformer for which an adapter of this kind is."""
    return joint_transformer() if kind == "sd35" else flux_transformer()


def layers_of(kind: Kind) -> dict[int, tuple[int, int]]:
    inner = HEADS * HEAD_DIM
    shapes = {
        "flux-xlabs": (2, FLUX_CONTEXT),
        "flux-instantx": (5, FLUX_CONTEXT),
        "sd35": (3, inner),
    }
    count, context = shapes[kind]
    return dict.fromkeys(range(count), (context, inner))


def projection(kind: Kind, tokens: int = 4) -> ImageProjection:
    if kind == "flux-xlabs":
        return LinearProjection(tiny.EMBEDDING_DIM, FLUX_CONTEXT, tokens)
    if kind == "flux-instantx":
        return HiddenProjection(tiny.EMBEDDING_DIM, FLUX_CONTEXT, tokens, hidden=2 * tiny.EMBEDDING_DIM)
    shape = PerceiverShape(width=16, depth=2, head_dim=8)
    return TimeResamplerProjection(FEATURE_DIM, HEADS * HEAD_DIM, tokens, shape=shape, waves=6)


@tiny.seeded
def adapter(kind: Kind, *, seed: int = 0, tokens: int = 4) -> ImagePromptAdapter:
    """An adapter as if trained: all weights random, strong enough to change the pictures clearly."""
    made = ImagePromptAdapter(projection(kind, tokens), layers_of(kind), injection=kind, head_dim=HEAD_DIM)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.requires_grad_(False)


@tiny.seeded
def embeddings(kind: Kind, images: int = 1, *, seed: int = 0) -> torch.Tensor:
    """What the adapter's encoder would make of some pictures."""
    if kind == "sd35":
        return torch.randn(images, PATCHES, FEATURE_DIM)
    return torch.randn(images, tiny.EMBEDDING_DIM)


@tiny.seeded
def call(kind: Kind, *, batch: int = 2, seed: int = 0, text: int = 5) -> dict[str, Any]:
    """Keyword arguments of one forward pass."""
    height, width = SIDE, SIDE + 4
    if kind == "sd35":
        return {
            "hidden_states": torch.randn(batch, JOINT_CHANNELS, height, width),
            "encoder_hidden_states": torch.randn(batch, text, JOINT_CONTEXT),
            "pooled_projections": torch.randn(batch, JOINT_POOLED),
            "timestep": torch.rand(batch) * 1000,
        }
    rows, columns = height // 2, width // 2
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)[None]
    return {
        "hidden_states": torch.randn(batch, rows * columns, 4 * CHANNELS),
        "encoder_hidden_states": torch.randn(batch, text, FLUX_CONTEXT),
        "pooled_projections": torch.randn(batch, FLUX_POOLED),
        "timestep": torch.rand(batch),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
    }
