"""Adapters of every variant for tiny bases: modules with random weights, and the tensors of their files."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.layers import find_cross_attention_layers, read_layer_shapes
from imprompt.attention.weights import list_lora_shapes
from imprompt.checkpoint import to_official
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
)

FEATURES, PATCHES, FACE = 24, 5, 6
"""Sizes of the tiny encoder's features, and of a tiny face embedding."""

# diffusers knows four layers and 64-wide heads only.
_PLUS = PerceiverShape(width=40, attention_width=128)

PROJECTIONS: dict[str, Callable[[int], ImageProjection]] = {
    "base": lambda context: LinearProjection(tiny.EMBEDDING_DIM, context),
    "plus": lambda context: ResamplerProjection(FEATURES, context, 5, shape=_PLUS),
    "full-face": lambda context: PatchProjection(FEATURES, context, PATCHES),
    "faceid": lambda context: FaceProjection(context, embedding_dim=FACE),
    "faceid-portrait": lambda context: FaceProjection(context, 16, embedding_dim=FACE),
    "faceid-plus": lambda context: _face_plus(context, 1),
    "faceid-plusv2": lambda context: _face_plus(context, 2),
}
"""Variant → its projection for text embeddings of a width."""

WITH_LORA = ("faceid", "faceid-plus", "faceid-plusv2")


def _face_plus(context: int, version: Any) -> ImageProjection:
    shape = PerceiverShape(width=context, attention_width=64)
    return FacePlusProjection(FEATURES, context, version=version, embedding_dim=FACE, shape=shape)


@tiny.seeded
def adapter(unet: UNet2DConditionModel, variant: str, *, seed: int = 0) -> ImagePromptAdapter:
    """An adapter as if trained: all weights random."""
    projection = PROJECTIONS[variant](unet.config["cross_attention_dim"])
    lora = list_lora_shapes(unet, 3) if variant in WITH_LORA else None
    made = ImagePromptAdapter(projection, read_layer_shapes(find_cross_attention_layers(unet)), lora)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def official(made: ImagePromptAdapter) -> dict[str, Tensor]:
    """The tensors of its file."""
    return {name: tensor.clone() for name, tensor in to_official(made.state_dict()).items()}


def nest_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As a `.bin` file has them."""
    groups: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    return groups


def paths(unet: UNet2DConditionModel) -> dict[int, str]:
    """Number of each attention processor → its path."""
    return dict(enumerate(unet.attn_processors))
