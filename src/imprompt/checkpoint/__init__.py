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

Names are imported when they are first used, because the table and the files' headers need no torch.
"""

from typing import TYPE_CHECKING, Any

from imprompt.runtime.lazy_names import import_lazy_name, read_lazy_names

if TYPE_CHECKING:
    from imprompt.checkpoint.loading import EncoderLike as EncoderLike
    from imprompt.checkpoint.loading import build_adapter as build_adapter
    from imprompt.checkpoint.loading import find_embedded_part as find_embedded_part
    from imprompt.checkpoint.loading import load_adapter as load_adapter
    from imprompt.checkpoint.loading import load_embedded_adapter as load_embedded_adapter
    from imprompt.checkpoint.loading import load_embedded_recognizer as load_embedded_recognizer
    from imprompt.checkpoint.names import from_official as from_official
    from imprompt.checkpoint.names import to_official as to_official
    from imprompt.checkpoint.published import EMBEDDED as EMBEDDED
    from imprompt.checkpoint.published import EMBEDDED_WEIGHTS as EMBEDDED_WEIGHTS
    from imprompt.checkpoint.published import ENCODERS as ENCODERS
    from imprompt.checkpoint.published import PUBLISHED as PUBLISHED
    from imprompt.checkpoint.published import PublishedAdapter as PublishedAdapter
    from imprompt.checkpoint.recognize import Description as Description
    from imprompt.checkpoint.recognize import describe as describe
    from imprompt.checkpoint.saving import convert_adapter as convert_adapter
    from imprompt.checkpoint.saving import save_adapter as save_adapter

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
    "load_embedded_recognizer",
    "save_adapter",
    "to_official",
]

_MODULES = read_lazy_names(__file__)


def __getattr__(name: str) -> Any:
    value = globals()[name] = import_lazy_name(__name__, _MODULES, name)
    return value
