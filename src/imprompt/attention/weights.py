"""The trained matrices of one attention layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.attention.choices import LoraShapes
from imprompt.attention.layers import UNet, find_attention_layers
from imprompt.attention.processor import KeyValue
from imprompt.errors import AdapterMismatch


class ImageKeyValue(nn.Module):
    """W'_k and W'_v of one cross-attention layer."""

    def __init__(self, context_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_key = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_value = nn.Linear(context_dim, inner_dim, bias=False)

    def forward(self, image_tokens: Float[Tensor, "batch tokens context_dim"]) -> KeyValue:
        """Compute K' = c_i W'_k and V' = c_i W'_v, each "batch tokens inner_dim"."""
        return KeyValue(self.to_key(image_tokens), self.to_value(image_tokens))


class LowRank(nn.Module):
    """A low-rank change of a matrix, up · down, which is zero at first."""

    def __init__(self, in_dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, rank, bias=False)
        self.up = nn.Linear(rank, out_dim, bias=False)
        # The initialization of diffusers' LoRALinearLayer, with which FaceID was trained.
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)


def read_weight(linear: nn.Module, shape: torch.Size) -> Tensor:
    """Return the matrix of a linear layer of the base, "out in", also if a LoRA is around it.

    Raises:
        AdapterMismatch: the layer is quantized, so its weight is no such matrix
    """
    weight = linear.weight
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == shape:
        return weight
    raise AdapterMismatch(
        f"new matrices for the image start as copies of the base's, but {type(linear).__name__} has no plain "
        "weight; make the adapter from the base before it is quantized"
    )


def list_lora_shapes(unet: UNet, rank: int) -> dict[int, LoraShapes]:
    """Return (in, out, rank) of the four matrices of every attention layer."""
    return {
        number: {
            "q": (attn.query_dim, attn.inner_dim, rank),
            "k": (attn.cross_attention_dim, attn.inner_kv_dim, rank),
            "v": (attn.cross_attention_dim, attn.inner_kv_dim, rank),
            "out": (attn.inner_dim, attn.out_dim, rank),
        }
        for number, (_, attn) in find_attention_layers(unet).items()
    }
