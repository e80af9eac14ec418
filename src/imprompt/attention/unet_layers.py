"""An adapter's layers in a U-Net: each cross-attention gets the processor `DecoupledAttention`."""

from collections.abc import Collection
from typing import Any, cast

from diffusers.models.attention_processor import Attention
from torch import nn

from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.denoiser_layers import ProcessorLayers, QueryGrid
from imprompt.attention.layers import (
    Shapes,
    UNet,
    check_fit,
    count_halvings,
    find_attention_layers,
    find_cross_attention_layers,
    read_layer_shapes,
)
from imprompt.attention.processor import (
    DecoupledAttention,
    check_lora_supported,
    check_supported,
)
from imprompt.errors import AdapterMismatch


class UNetLayers(ProcessorLayers):
    """The cross-attention layers of a U-Net, and with a LoRA the self-attention layers too.

    Args:
        unet: the U-Net
        owner: stands for the attachment in processors that several adapters share
        shapes: the adapter's layers
        lora_layers: numbers of the attention layers, self-attention too, that its LoRA changes

    Attributes:
        levels: layer number → how often the latents have been halved there

    Raises:
        AttachmentError: an attention processor or option that is not supported
        AdapterMismatch: the adapter's layers are not this U-Net's
    """

    noun = "U-Net"

    def __init__(self, unet: UNet, owner: object, shapes: Shapes, lora_layers: Collection[int]) -> None:
        crossing = find_cross_attention_layers(unet)
        check_fit(shapes, read_layer_shapes(crossing))
        self.names = {layer: name for layer, (name, _) in crossing.items()}
        blocks = len(cast(nn.ModuleList, unet.down_blocks))
        self.levels = {layer: count_halvings(name, blocks) for layer, name in self.names.items()}
        layers = crossing | _find_lora_layers(unet, lora_layers)
        for name, attn in layers.values():
            check_supported(name, attn)
        super().__init__(layers, DecoupledAttention, owner)

    def read_geometry(self, call: DenoiserCall) -> tuple[int, int]:
        """Return height and width of the latents."""
        return call.sample.shape[-2], call.sample.shape[-1]

    def grid(self, layer: int, geometry: Any) -> QueryGrid:
        """Return the queries of a layer, where the latents have been halved some times, rounding up."""
        height, width = (-(-side // 2 ** self.levels[layer]) for side in geometry)
        return QueryGrid(((height, width),))


def _find_lora_layers(unet: UNet, numbers: Collection[int]) -> dict[int, tuple[str, Attention]]:
    layers = find_attention_layers(unet) if numbers else {}
    for number in numbers:
        if number not in layers:
            raise AdapterMismatch(f"the adapter's LoRA changes layer {number}, which this base does not have")
        check_lora_supported(*layers[number])
    return {number: layers[number] for number in numbers}
