"""The names of an adapter's tensors: those of ImagePromptAdapter, and the official ones.

projection.X                      image_proj.X
layers.N.to_key.weight            ip_adapter.N.to_k_ip.weight
layers.N.to_value.weight          ip_adapter.N.to_v_ip.weight           (bias too, in XLabs' adapters)
layers.N.norm_q.weight            ip_adapter.N.norm_q.weight            (and other norms, in SD3.5's)
lora.N.q.down.weight              ip_adapter.N.to_q_lora.down.weight        (q, k, v, out; down, up)
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from imprompt.errors import CheckpointError

_N = "(0|[1-9][0-9]*)"
_NORM = r"(norm_ip\.linear\.(?:weight|bias)|norm_(?:q|k|ip_k)\.weight)"
_FROM_OFFICIAL = (
    (r"image_proj\.(.+)", r"projection.\1"),
    (rf"ip_adapter\.{_N}\.to_k_ip\.(weight|bias)", r"layers.\1.to_key.\2"),
    (rf"ip_adapter\.{_N}\.to_v_ip\.(weight|bias)", r"layers.\1.to_value.\2"),
    (rf"ip_adapter\.{_N}\.{_NORM}", r"layers.\1.\2"),
    (rf"ip_adapter\.{_N}\.to_(q|k|v|out)_lora\.(down|up)\.weight", r"lora.\1.\2.\3.weight"),
)
_TO_OFFICIAL = (
    (r"projection\.(.+)", r"image_proj.\1"),
    (rf"layers\.{_N}\.to_key\.(weight|bias)", r"ip_adapter.\1.to_k_ip.\2"),
    (rf"layers\.{_N}\.to_value\.(weight|bias)", r"ip_adapter.\1.to_v_ip.\2"),
    (rf"layers\.{_N}\.{_NORM}", r"ip_adapter.\1.\2"),
    (rf"lora\.{_N}\.(q|k|v|out)\.(down|up)\.weight", r"ip_adapter.\1.to_\2_lora.\3.weight"),
)


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an adapter's state dict to the official names; the inverse of `from_official`."""
    return {_rename(name, _TO_OFFICIAL): tensor for name, tensor in tensors.items()}


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official tensors to the names of an adapter's state dict; the inverse of `to_official`."""
    return {_rename(name, _FROM_OFFICIAL): tensor for name, tensor in tensors.items()}


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    raise CheckpointError(f"{name} is no known tensor of an adapter")
