"""The processor of self-attention layers that computes some queries at a time."""

from typing import Any, cast

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.attention.layers import UNet, find_attention_layers
from imprompt.attention.terms import merge_heads, split_heads
from imprompt.runtime.chunked_attention import attend_in_chunks


class ChunkedAttention(AttnProcessor2_0):
    """diffusers' `AttnProcessor2_0`, with `attend_in_chunks` for self-attention without a mask."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "batch query_len query_dim"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Float[Tensor, "batch query_len query_dim"]:
        """Compute one layer."""
        if encoder_hidden_states is not None or attention_mask is not None:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        projections = (attn.to_q, attn.to_k, attn.to_v)
        heads = (split_heads(cast(nn.Module, one)(hidden_states), attn.heads) for one in projections)
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        return dropout(to_out(merge_heads(attend_in_chunks(*heads))))


def use_chunked_attention(unet: UNet) -> None:
    """Let the self-attention of a U-Net compute in chunks where it has diffusers' `AttnProcessor2_0`."""
    for _, attn in find_attention_layers(unet).values():
        layer: Any = attn
        if not attn.is_cross_attention and type(layer.processor) is AttnProcessor2_0:
            layer.processor = ChunkedAttention()
