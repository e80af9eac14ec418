"""What settings of the attention choose from, and the known bases; this module does not import torch."""

from collections.abc import Mapping
from typing import Literal

Scaling = Literal["value", "key and value", "key and mean value"]
"""What λ multiplies, see `imprompt.Reference`."""

Axis = Literal["steps", "noise"]
"""What `start` and `end` of a reference are fractions of."""

Place = Literal["q", "k", "v", "out"]
"""The four matrices of an attention layer."""

LoraShapes = Mapping[Place, tuple[int, int, int]]
"""Matrix of an attention layer → (in, out, rank) of its LoRA."""

FAMILIES = {(16, 768): "SD1.5", (16, 1024): "SD2.x", (70, 2048): "SDXL", (7, 192): "mini"}
"""(number of cross-attention layers, width of the text embeddings) of the well-known bases."""

FAMILY_OF_WIDTH = {width: family for (_, width), family in FAMILIES.items()}
"""Width of the text embeddings → family, of the well-known bases."""
