"""What every image projection offers."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from imprompt.encoder import Input


class ImageProjection(nn.Module):
    """So many tokens for each picture, each as wide as the base model's text embeddings.

    `forward` takes the inputs that `takes` names, in its order, each "batch d" (features: "batch patches d"),
    and returns the tokens, "batch tokens context_dim".

    The `state_dict` of every projection is the `image_proj` part of an official checkpoint, name for name.

    Attributes:
        takes: width of each input, in the order of `forward`'s arguments
        context_dim: width of a token
        tokens: how many tokens one picture becomes
    """

    takes: Mapping[Input, int]
    context_dim: int
    tokens: int


def draw_linears(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw all linear layers anew as `nn.Linear` does, which takes no generator: ±1/√inputs, uniformly.

    Does nothing without a generator: the layers have their weights from torch's global one.
    """
    if generator is None:
        return
    for layer in (layer for layer in module.modules() if isinstance(layer, nn.Linear)):
        bound = 1 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
