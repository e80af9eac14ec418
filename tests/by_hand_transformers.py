"""The equations of the adapters for diffusion transformers by hand: what attached adapters must amount to.

Nothing here is imprompt's but the adapter's weights. A processor computes the base's attention and the image
prompts step by step, by matrix products and softmax alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from imprompt.adapter.module import ImagePromptAdapter


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V for every head, all "batch length heads d"; heads are joined."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def rms(x: Tensor, epsilon: float, weight: Tensor | None = None) -> Tensor:
    made = x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    return made if weight is None else made * weight


class HandFlux:
    """The attention of FLUX.1 with the image prompts of one or more adapters.

    Args:
        number: of the block
        prompts: adapter, its image tokens "batch tokens width", and λ
    """

    _attention_backend = _parallel_config = None

    def __init__(self, number: int, prompts: Sequence[tuple[ImagePromptAdapter, Tensor, float]]) -> None:
        self.number, self.prompts = number, prompts

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        own = attn.norm_q(heads(attn.to_q(hidden_states)))
        query, key, value = own, attn.norm_k(heads(attn.to_k(hidden_states))), heads(attn.to_v(hidden_states))
        words = 0
        if encoder_hidden_states is not None:
            words = encoder_hidden_states.shape[1]
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states))), query], 1)
            key = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states))), key], 1)
            value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), value], 1)
        rotate: Any = apply_rotary_emb
        query, key = (rotate(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        out = attended(query, key, value)
        gated, ungated = self._image(own, heads)
        if encoder_hidden_states is None:
            return out + gated
        text, picture = out[:, :words], out[:, words:] + gated
        return attn.to_out[0](picture), attn.to_add_out(text), ungated

    def _image(self, own: Tensor, heads: Any) -> tuple[Tensor, Tensor]:
        """The terms of InstantX' kind, and those of XLabs' kind."""
        gated, ungated = torch.zeros_like(own.flatten(2)), torch.zeros_like(own.flatten(2))
        for adapter, tokens, scale in self.prompts:
            if str(self.number) not in adapter.layers:
                continue
            layer: Any = adapter.layers[str(self.number)]
            key, value = heads(tokens @ layer.to_key.weight.T), heads(tokens @ layer.to_value.weight.T)
            if adapter.injection == "flux-xlabs":
                key = key + heads(layer.to_key.bias)
                value = value + heads(layer.to_value.bias)
                ungated = ungated + scale * attended(own, key, value)
            else:
                gated = gated + scale * attended(own, rms(key, 1e-5), value)
        return gated, ungated


@contextmanager
def by_hand(transformer: Any, *prompts: tuple[ImagePromptAdapter, Tensor, float]) -> Iterator[None]:
    """Let image prompts act on a FLUX transformer, each an adapter, its tokens and λ."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    before = [block.attn.processor for block in blocks]
    for number, block in enumerate(blocks):
        block.attn.processor = HandFlux(number, prompts)
    try:
        yield
    finally:
        for block, processor in zip(blocks, before, strict=True):
            block.attn.processor = processor
