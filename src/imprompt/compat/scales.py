"""Read `set_ip_adapter_scale`: λ of every cross-attention layer.

A dictionary names blocks, as in InstantStyle (https://arxiv.org/abs/2404.02733):

    {"down": {"block_2": [0.0, 1.0]}, "mid": 0.5, "up": {"block_0": [0.0, 1.0, 0.0]}}

A number is for all of a block or section, a list has one for each spatial transformer of a block, and what is
not named has 0 (diffusers, loaders/unet_loader_utils.py). In the place of a number there may be a list with
one λ for each picture, which needs masks.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import TypeVar

from imprompt.attention.layer_weights import LayerNames, SpatialTransformer, find_spatial_transformers
from imprompt.errors import InvalidReference

T = TypeVar("T")

Scale = float | tuple[float, ...]
"""λ of all pictures of an adapter, or of each."""

Block = Sequence[SpatialTransformer]
Blocks = Mapping[str, Mapping[str, Block]]
"""Section → block → its spatial transformers, e.g. "down" → "block_2" → ...; the middle's block is "mid"."""


def read_scale(scale: object, names: LayerNames) -> dict[int, Scale]:
    """Return λ of every layer of one adapter.

    Args:
        scale: a number, a list with one for each picture, or a dictionary of blocks
        names: official number N → module name of every cross-attention layer

    Raises:
        InvalidReference: there is no such block, a list of another length, or no finite number
    """
    if not isinstance(scale, Mapping):
        return dict.fromkeys(names, _read_value(scale))
    blocks = _group_blocks(find_spatial_transformers(names))
    scales: dict[int, Scale] = dict.fromkeys(names, 0.0)
    for section, value in scale.items():
        for transformer, one in _expand_section(section, value, blocks):
            scales.update(dict.fromkeys(transformer.layers, one))
    return scales


def _group_blocks(transformers: Block) -> Blocks:
    blocks: dict[str, dict[str, list[SpatialTransformer]]] = {}
    for transformer in transformers:
        match = re.match(r"(?:down|up)_blocks\.([0-9]+)\.", transformer.name)
        block = f"block_{match[1]}" if match else "mid"
        blocks.setdefault(transformer.section, {}).setdefault(block, []).append(transformer)
    return blocks


def _expand_section(
    section: object, value: object, blocks: Blocks
) -> Iterator[tuple[SpatialTransformer, Scale]]:
    inside = _find(section, blocks, "a scale dictionary has")
    values = value if isinstance(value, Mapping) else dict.fromkeys(inside, value)
    for block, one in values.items():
        transformers = _find(block, inside, f"{section!r} of this U-Net has")
        yield from zip(transformers, _spread(one, len(transformers), f"{section}.{block}"), strict=True)


def _find(key: object, choices: Mapping[str, T], phrase: str) -> T:
    if key not in choices:
        raise InvalidReference(f"set_ip_adapter_scale: {phrase} {', '.join(choices)}, not {key!r}")
    return choices[str(key)]


def _spread(value: object, count: int, where: str) -> list[Scale]:
    """Return the value of each of a block's spatial transformers."""
    if not isinstance(value, list):
        return [_read_value(value)] * count
    if len(value) not in (1, count):
        raise InvalidReference(
            f"set_ip_adapter_scale: {where} has {count} spatial transformers, not {len(value)}"
        )
    return [_read_value(one) for one in (value * count if len(value) == 1 else value)]


def _read_value(value: object) -> Scale:
    if isinstance(value, list | tuple) and value:
        return tuple(_read_number(one) for one in value)
    return _read_number(value)


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InvalidReference(f"set_ip_adapter_scale: a scale must be a finite number, not {value!r}")
    return float(value)
