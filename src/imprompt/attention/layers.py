"""The attention layers of a base model: their official numbers, widths, resolutions and family of bases."""

import re
from collections.abc import Mapping

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel

from imprompt.attention.choices import FAMILIES
from imprompt.errors import AdapterMismatch

UNet = UNet2DConditionModel | UNetMotionModel
"""The denoisers that an adapter can be attached to."""

Shapes = Mapping[int, tuple[int, int]]
"""Official layer number → (context_dim, inner_dim)."""


def find_attention_layers(unet: UNet) -> dict[int, tuple[str, Attention]]:
    """Return the attention layers under their official numbers N, each with its module's name.

    N is the position in `unet.attn_processors` (down, up, then mid), as the official training script numbers
    them (tencent-ailab/IP-Adapter, tutorial_train.py): self-attention 0, 2, 4, ..., cross-attention 1, 3, 5,
    ... The attention over time of a `UNetMotionModel` is not counted.
    """
    names = [
        name.removesuffix(".processor") for name in unet.attn_processors if ".motion_modules." not in name
    ]
    modules = {number: (name, unet.get_submodule(name)) for number, name in enumerate(names)}
    return {number: (name, attn) for number, (name, attn) in modules.items() if isinstance(attn, Attention)}


def find_cross_attention_layers(unet: UNet) -> dict[int, tuple[str, Attention]]:
    """Return those of `find_attention_layers` that attend to the text."""
    return {
        number: (name, attn)
        for number, (name, attn) in find_attention_layers(unet).items()
        if attn.is_cross_attention and name.endswith("attn2")
    }


def count_halvings(name: str, levels: int) -> int:
    """Return how often the latents have been halved at a layer.

    Args:
        name: the layer's module, e.g. "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
        levels: the number of down blocks (and up blocks) of the U-Net; all except the last halve the latents
    """
    if match := re.match(r"(down|up)_blocks\.([0-9]+)\.", name):
        block = int(match[2])
        return block if match[1] == "down" else levels - 1 - block
    return levels - 1


def read_layer_shapes(layers: Mapping[int, tuple[str, Attention]]) -> dict[int, tuple[int, int]]:
    """Return (context_dim, inner_dim) of each layer."""
    return {number: (attn.cross_attention_dim, attn.inner_kv_dim) for number, (_, attn) in layers.items()}


def describe_base(shapes: Shapes) -> str:
    """Name a base by its layers: "SDXL (70 layers, 2048-wide text)"."""
    if not shapes:
        return "a model without cross-attention"
    widths = sorted({context_dim for context_dim, _ in shapes.values()})
    size = f"{len(shapes)} layers, {'/'.join(map(str, widths))}-wide text"
    family = FAMILIES.get((len(shapes), widths[0])) if len(widths) == 1 else None
    return f"{family} ({size})" if family else f"a model with {size}"


def check_fit(adapter: Shapes, base: Shapes) -> None:
    """Compare an adapter's layers with a base's.

    Raises:
        AdapterMismatch: they differ; the message names both families, or the first layer that differs
    """
    if dict(adapter) == dict(base):
        return
    if describe_base(adapter) != describe_base(base):
        raise AdapterMismatch(
            f"this adapter is for {describe_base(adapter)}; this base is {describe_base(base)}"
        )
    differing = next(n for n in sorted({*adapter, *base}) if adapter.get(n) != base.get(n))
    raise AdapterMismatch(
        f"this adapter does not fit this base: layer {differing} has (text, inner) widths "
        f"{adapter.get(differing)} in the adapter and {base.get(differing)} in the base"
    )
