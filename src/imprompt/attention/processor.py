"""Decoupled cross-attention: the attention to the text, plus an attention to every image prompt.

    output = Attn(Q, K, V) + Σ_r m_r · Attn(Q, K'_r, λ_r V'_r)

Ye et al. 2023, https://arxiv.org/abs/2308.06721, equation 5, with λ folded into V' (attention is linear in
V'), and m_r a mask over the queries. The same query Q serves every term. K'_r and λ_r V'_r do not depend on
the time step, so they are computed before the sampling loop, with a row per sample. Only their attention runs
inside it.

Face adapters have a LoRA too, also on self-attention: W becomes W + s · up down for the query, key, value and
output matrices of the base (never for W'_k, W'_v).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.attention.choices import Place
from imprompt.attention.chunks import ChunkedAttention
from imprompt.attention.terms import (
    KeyValue,
    LayerProcessor,
    LayerState,
    LoraTerm,
    Term,
    add_image_attention,
    attend,
    merge_heads,
    split_heads,
)
from imprompt.errors import AttachmentError
from imprompt.runtime.chunked_attention import attend_in_chunks

PLAIN_PROCESSORS = (AttnProcessor, SlicedAttnProcessor, XFormersAttnProcessor, FusedAttnProcessor2_0)
"""Other processors of diffusers for the same attention; they are called unchanged, for the text."""


class DecoupledAttention(LayerProcessor):
    """The attention processor that an attached adapter installs on one attention layer.

    For the text it does what diffusers' `AttnProcessor2_0` does, operation for operation, so without image
    prompts, and with λ = 0, the layer returns the same bits as before. Any other processor of
    `PLAIN_PROCESSORS` is called for the text, and the images' part is added to its output.

    The text's K and V are computed once per prompt. While image prompts are active they are cached, together
    with the very tensors they came from, and used again only for those same tensors, unchanged. In-place
    changes are noticed, except through `Tensor.data`. A compiled layer computes K and V at every step.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "batch query_len query_dim"],
        encoder_hidden_states: Float[Tensor, "batch text_len context_dim"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "batch query_len query_dim"]:
        """Compute one layer: `hidden_states` attend to the text and to every image prompt.

        Raises:
            AmbiguousBatch: the image prompts are for another batch size
        """
        state = self.find_running_state()
        terms, loras = state.terms, state.loras
        if state.is_split and (terms or loras):
            terms, loras = state.take_rows(hidden_states.shape[0])
        if type(self.base) not in (AttnProcessor2_0, ChunkedAttention):
            # Not all of them take `temb`, which a transformer block never passes.
            text = self.base(attn, hidden_states, encoder_hidden_states, attention_mask)
            return text + _compute_image_output(attn, hidden_states, terms) if terms else text
        query = split_heads(project(attn.to_q, hidden_states, "q", loras), attn.heads)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key, value = _text_key_value(attn, context, state, loras)
        mask = _head_mask(attn, attention_mask, context)
        is_chunked = type(self.base) is ChunkedAttention and context is hidden_states and mask is None
        text = attend_in_chunks(query, key, value) if is_chunked else attend(query, key, value, mask)
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        return dropout(project(to_out, merge_heads(add_image_attention(text, query, terms)), "out", loras))


def _compute_image_output(attn: Attention, hidden_states: Tensor, terms: Sequence[Term]) -> Tensor:
    """Return what the image prompts add to the layer's output: W_out Σ_r ..., without the bias."""
    query = split_heads(attn.to_q(hidden_states), attn.heads)
    to_out, dropout = cast(nn.ModuleList, attn.to_out)
    image = merge_heads(add_image_attention(torch.zeros_like(query), query, terms))
    return dropout(project_without_bias(to_out, image))


def project_without_bias(
    linear: nn.Module, x: Float[Tensor, "batch length inner_dim"]
) -> Float[Tensor, "batch length width"]:
    """Return W x. A quantized layer hides W and its bias, so what it makes of zeros is subtracted."""
    if not torch.compiler.is_compiling() and is_plain_linear(linear):
        return F.linear(x, cast(Tensor, linear.weight))
    return linear(x) - linear(torch.zeros_like(x[:1, :1]))


def _text_key_value(
    attn: Attention, context: Tensor, state: LayerState, loras: Sequence[LoraTerm]
) -> KeyValue:
    if not state.terms or state.is_split or not _may_cache(attn, context):
        return project_text(attn, context, loras)
    if state.text is None or not state.text.is_for(attn, context, loras):
        state.text = TextKeyValue(attn, context, loras)
    return state.text.key_value


class TextKeyValue:
    """The text's K and V of one layer, with the tensors that they were computed from.

    It holds the tensors themselves, so no other tensor can get their address and be mistaken for them.
    """

    def __init__(self, attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> None:
        self.sources = _sources(attn, context, loras)
        self.state = _state(self.sources)
        self.key_value = project_text(attn, context, loras)

    def is_for(self, attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> bool:
        """Whether K and V of this context are the same."""
        sources = _sources(attn, context, loras)
        same = len(sources) == len(self.sources)
        same = same and all(mine is theirs for mine, theirs in zip(self.sources, sources, strict=True))
        return same and self.state == _state(sources)

    def refresh(self, attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> None:
        """Compute K and V anew at the same addresses, if what they came from has changed."""
        if self.is_for(attn, context, loras):
            return
        for kept, fresh in zip(self.key_value, project_text(attn, context, loras), strict=True):
            kept.copy_(fresh)
        self.state = _state(self.sources)


def project_text(attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> KeyValue:
    """Compute K = c_t W_k and V = c_t W_v, with split heads."""
    to_k, to_v = get_text_projections(attn)
    key, value = project(to_k, context, "k", loras), project(to_v, context, "v", loras)
    return KeyValue(split_heads(key, attn.heads), split_heads(value, attn.heads))


def project(
    linear: nn.Module, x: Float[Tensor, "batch length _"], place: Place, loras: Sequence[LoraTerm]
) -> Float[Tensor, "batch length _"]:
    """Compute W x + Σ s · up (down x)."""
    output = linear(x)
    for pairs, scale in loras:
        if place in pairs:
            down, up = pairs[place]
            output = output + scale.to(x) * F.linear(F.linear(x, down.to(x)), up.to(x))
    return output


def get_text_projections(attn: Attention) -> tuple[Any, Any]:
    """Return W_k and W_v of a layer of the base model: a linear layer, or a user's LoRA around it."""
    assert attn.to_k is not None
    assert attn.to_v is not None
    return attn.to_k, attn.to_v


def check_supported(name: str, attn: Attention) -> None:
    """Refuse an attention layer whose arithmetic `DecoupledAttention` would change.

    Raises:
        AttachmentError: the processor is none of diffusers' plain ones, or the layer has an option that no
            Stable Diffusion uses
    """
    kind = type(attn.processor)
    if kind.__name__.startswith("IPAdapter"):
        raise AttachmentError(
            f"diffusers' own IP-Adapter is loaded on this U-Net ({name} has the attention processor "
            f"{kind.__name__}); call pipe.unload_ip_adapter() first"
        )
    if kind not in (AttnProcessor2_0, ChunkedAttention, DecoupledAttention, *PLAIN_PROCESSORS):
        raise AttachmentError(
            f"{name} has the attention processor {kind.__name__}, which is not supported; "
            "undo what put it there, or call unet.set_attn_processor(AttnProcessor2_0()) before attaching"
        )
    extras = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
    used = [extra for extra in extras if getattr(attn, extra, None) is not None]
    used += ["residual_connection"] if attn.residual_connection else []
    used += ["rescale_output_factor"] if attn.rescale_output_factor != 1.0 else []
    if used:
        raise AttachmentError(f"{name} uses {', '.join(used)}, which the image branch is not defined for")


def check_lora_supported(name: str, attn: Attention) -> None:
    """Refuse an attention layer in which a LoRA cannot be applied.

    Raises:
        AttachmentError: its processor is not `AttnProcessor2_0`
    """
    processor = attn.processor
    base = processor.base if isinstance(processor, DecoupledAttention) else processor
    if type(base) not in (AttnProcessor2_0, ChunkedAttention):
        raise AttachmentError(
            f"{name} has the attention processor {type(base).__name__}; this adapter's LoRA needs "
            "AttnProcessor2_0: call unet.set_attn_processor(AttnProcessor2_0()) before attaching"
        )


def _head_mask(attn: Attention, mask: Tensor | None, context: Tensor) -> Tensor | None:
    if mask is None:
        return None
    batch, length = context.shape[:2]
    mask = attn.prepare_attention_mask(mask, length, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


def _may_cache(attn: Attention, context: Tensor) -> bool:
    """Whether K and V are a pure function of tensors whose changes can be noticed."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or context.is_inference():
        return False
    return all(map(is_plain_linear, get_text_projections(attn)))


def is_plain_linear(linear: Any) -> bool:
    """Whether a layer computes W x + b from its own parameters and nothing else."""
    # accelerate offloads weights with an instance's own `forward`; LoRA and quantization are other classes.
    hooked = linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__
    plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
    return plain and not hooked and not linear.weight.is_inference()


def _sources(attn: Attention, context: Tensor, loras: Sequence[LoraTerm]) -> tuple[Tensor | None, ...]:
    to_k, to_v = get_text_projections(attn)
    low_rank = (x for lora in loras for pair in lora.pairs.values() for x in (*pair, lora.scale))
    return context, to_k.weight, to_k.bias, to_v.weight, to_v.bias, *low_rank


def _state(sources: tuple[Tensor | None, ...]) -> tuple[object, ...]:
    """Return a value that changes when a tensor is written to or moved, or when autocast changes."""
    tensors = [source for source in sources if source is not None]
    kind = tensors[0].device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return autocast, *((tensor._version, tensor.data_ptr()) for tensor in tensors)
