"""Adapter files: recognize, load, validate, repair, save.

The published ("official") layout has two groups of tensors: `image_proj.*`, the projection, and
`ip_adapter.N.to_k_ip.weight`, `ip_adapter.N.to_v_ip.weight`, a pair for each cross-attention layer, where N
is the layer's position among all attention processors of the base. FaceID adds LoRA to all of the base's
attention layers, `ip_adapter.N.to_q_lora.down.weight` and so on. A `.safetensors` file holds the tensors
flat; a `.bin` file is a torch pickle of {"image_proj": {...}, "ip_adapter": {...}}. A file is recognized by
its tensors, never by its name.

    files         bytes ↔ tensors
    layouts       other layouts → the official one
    projections   tensors → the projection's kind and sizes
    recognize     what a file is, and what is wrong with it
    names         official names ↔ those of ImagePromptAdapter
    published     the table of published adapters
    loading, saving
"""

from imprompt.checkpoint.loading import (
    EncoderLike,
    build_adapter,
    find_embedded_part,
    load_adapter,
    load_embedded_adapter,
)
from imprompt.checkpoint.names import from_official, to_official
from imprompt.checkpoint.published import EMBEDDED, EMBEDDED_WEIGHTS, ENCODERS, PUBLISHED, PublishedAdapter
from imprompt.checkpoint.recognize import Description, describe
from imprompt.checkpoint.saving import convert_adapter, save_adapter

__all__ = [
    "EMBEDDED",
    "EMBEDDED_WEIGHTS",
    "ENCODERS",
    "PUBLISHED",
    "Description",
    "EncoderLike",
    "PublishedAdapter",
    "build_adapter",
    "convert_adapter",
    "describe",
    "find_embedded_part",
    "from_official",
    "load_adapter",
    "load_embedded_adapter",
    "save_adapter",
    "to_official",
]
