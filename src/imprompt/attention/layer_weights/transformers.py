"""The spatial transformers of a U-Net, or the blocks of a diffusion transformer, by number t as they run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Section = Literal["down", "mid", "up", "double", "single"]

SECTIONS: dict[Section, str] = {
    "down": "down_blocks",
    "mid": "mid_block",
    "up": "up_blocks",
    "double": "transformer_blocks",
    "single": "single_transformer_blocks",
}
"""Section, in running order → how the names of its modules begin. The last two are FLUX.1's: double
blocks have separate weights for text and picture. Stable Diffusion 3.5 has double blocks only."""

LayerNames = Mapping[int, str]
"""Official layer number N → name of the cross-attention module, as in `find_cross_attention_layers`."""

FAMILIES = {
    ((6, 1, 9), 16): "SD1.5 and SD2.x",
    ((4, 1, 6), 70): "SDXL and Kolors",
    ((2, 1, 4), 7): "mini",
}
"""Spatial transformers in (down, mid, up), and layers in all → the bases with these numbers."""


class SpatialTransformer(NamedTuple):
    """One spatial transformer of a U-Net, or block of a diffusion transformer, with the layers inside it."""

    name: str
    """The name of the module, e.g. "down_blocks.1.attentions.0"."""
    layers: tuple[int, ...]
    """Official numbers N."""

    @property
    def section(self) -> Section:
        """The part of the U-Net to which it belongs."""
        begin = self.name.partition(".")[0]
        return next(section for section in SECTIONS if begin == SECTIONS[section])


def find_spatial_transformers(layer_names: LayerNames) -> list[SpatialTransformer]:
    """Return the spatial transformers in the order in which they run; t is the index in the list.

    Args:
        layer_names: the layers of a U-Net with modules down_blocks, mid_block and up_blocks, or of a
            diffusion transformer with modules transformer_blocks and single_transformer_blocks
    """
    inside: dict[str, list[int]] = {}
    for number, name in layer_names.items():
        place = name.partition(".transformer_blocks.")[0].removesuffix(".attn")
        inside.setdefault(place, []).append(number)
    transformers = [SpatialTransformer(name, tuple(sorted(layers))) for name, layers in inside.items()]
    return sorted(transformers, key=_running_order)


def family(transformers: Sequence[SpatialTransformer]) -> str:
    """Return the bases with this arrangement of layers, or "" for an unknown base."""
    sections = [transformer.section for transformer in transformers]
    down, mid, up, *_ = (sections.count(section) for section in SECTIONS)
    layers = sum(len(transformer.layers) for transformer in transformers)
    return FAMILIES.get(((down, mid, up), layers), "")


def list_layers(transformers: Sequence[SpatialTransformer]) -> Iterable[tuple[int, int]]:
    """Return (t, N) of every layer."""
    return ((t, number) for t, transformer in enumerate(transformers) for number in transformer.layers)


def _running_order(transformer: SpatialTransformer) -> tuple[int, list[int]]:
    numbers = [int(part) for part in transformer.name.split(".") if part.isdigit()]
    return list(SECTIONS).index(transformer.section), numbers
