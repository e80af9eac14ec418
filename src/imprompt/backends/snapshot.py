"""Whether a U-Net still computes what it did: its weights, layers, hooks and attention processors."""

from collections.abc import Iterator
from itertools import chain
from operator import is_
from typing import Any

from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from imprompt.attention.chunks import ChunkedAttention
from imprompt.attention.processor import DecoupledAttention
from imprompt.attention.sharing import list_attention_layers

_AGAIN = "call imprompt.accelerate again"


class UNetSnapshot:
    """The weights and layers of a U-Net at one time; a check takes a fraction of a millisecond.

    Args:
        unet: the U-Net
    """

    def __init__(self, unet: nn.Module) -> None:
        self._modules = list(unet.modules())
        self._inner = [module for module in self._modules if module is not unet]
        self._parts = self._list_parts()
        self._tensors = [part for part in self._parts if isinstance(part, Tensor)]
        self._state = self._read_state()
        self._attention = list_attention_layers(unet)
        blocks: Any = unet.up_blocks
        self._up_blocks = list(blocks)

    def find_change(self) -> str | None:
        """Return what has changed, a clause with a remedy; None if nothing has."""
        if not self._has_same_parts() or self._state != self._read_state():
            return f"the U-Net's weights or layers have changed; {_AGAIN}"
        if hook := self.find_hook():
            return hook
        # FreeU is a setting of the blocks (diffusers, utils/torch_utils.py, `is_freeu_enabled`).
        if any(getattr(block, "s1", None) for block in self._up_blocks):
            return "FreeU is on"
        for attn in self._attention:
            processor: Any = attn.processor
            base = processor.base if isinstance(processor, DecoupledAttention) else processor
            if type(base) not in (AttnProcessor2_0, ChunkedAttention):
                return f"the attention processor of a layer is {type(base).__name__}"
        return None

    def find_hook(self) -> str | None:
        """Return that a layer has a hook, a clause; None if none has."""
        if any(self._list_hooks()) or any("forward" in vars(module) for module in self._inner):
            return "a layer of it has a hook, or another forward"
        return None

    def _list_parts(self) -> list[Any]:
        tables = ((one._modules, one._parameters, one._buffers) for one in self._modules)
        return [part for table in chain.from_iterable(tables) for part in table.values()]

    def _has_same_parts(self) -> bool:
        parts = self._list_parts()
        return len(parts) == len(self._parts) and all(map(is_, parts, self._parts))

    def _list_hooks(self) -> Iterator[object]:
        for module in self._inner:
            yield module._forward_hooks
            yield module._forward_pre_hooks

    def _read_state(self) -> list[tuple[int, int]]:
        """Return what changes when a tensor is written to or moved."""
        return [(0 if x.is_inference() else x._version, x.data_ptr()) for x in self._tensors]
