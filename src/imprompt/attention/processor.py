"""Decoupled cross-attention: the attention to the text, plus an attention to every image prompt.

    output = Attn(Q, K, V) + Σ_r m_r · Attn(Q, K'_r, λ_r V'_r)

Ye et al. 2023, https://arxiv.org/abs/2308.06721, equation 5, with λ folded into V' (attention is linear in
V'), and m_r a mask over the queries. The same query Q serves every term. K'_r and λ_r V'_r do not depend on
the time step, so they are computed before the sampling loop, with a row per sample. Only their attention runs
inside it.

Face adapters have a LoRA too, also on self-attention: W becomes W + s · up down for the query, key, value and
output matrices of the base (never for W'_k, W'_v).
"""

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.attention.choices import Place
from imprompt.errors import AmbiguousBatch, AttachmentError


class KeyValue(NamedTuple):
    """A key and a value: "batch length inner_dim", or with split heads "batch heads length head_dim"."""

    key: Tensor
    value: Tensor


class ImageTerm(NamedTuple):
    """One image prompt at one layer: K' and λV' with split heads, and m, "batch 1 queries 1" (None: 1)."""

    key: Tensor
    value: Tensor
    weight: Tensor | None = None


class LoraTerm(NamedTuple):
    """One LoRA at one layer: (down, up) for some of its matrices, and its strength s, "batch 1 1"."""

    pairs: dict[Place, tuple[Tensor, Tensor]]
    scale: Tensor


AttentionProcessor = Callable[..., Tensor]
"""The callable that computes a diffusers attention layer."""

PLAIN_PROCESSORS = (AttnProcessor, SlicedAttnProcessor, XFormersAttnProcessor, FusedAttnProcessor2_0)
"""Other processors of diffusers for the same attention; they are called unchanged, for the text."""


def split_heads(
    x: Float[Tensor, "batch length inner_dim"], heads: int
) -> Float[Tensor, "batch {heads} length inner_dim//{heads}"]:
    """Give every head its own axis."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(
    x: Float[Tensor, "batch heads length head_dim"],
) -> Float[Tensor, "batch length heads*head_dim"]:
    """Undo `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Float[Tensor, "batch heads query_len head_dim"],
    key: Float[Tensor, "batch heads key_len head_dim"],
    value: Float[Tensor, "batch heads key_len head_dim"],
    mask: Float[Tensor, "batch heads mask_len key_len"]
    | Bool[Tensor, "batch heads mask_len key_len"]
    | None = None,
) -> Float[Tensor, "batch heads query_len head_dim"]:
    """Attn(Q, K, V) = softmax(Q Kᵀ / √head_dim) V, head by head.

    `mask` is added to the logits, or is True for the keys to attend to; its `mask_len` is 1 or `query_len`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class LayerState:
    """The image prompts and LoRAs of one layer for one thread, by their owners.

    Attributes:
        terms: all terms of the sum
        loras: all LoRAs
        has_run: whether the layer has run since the last change
        text: the text's K and V
        is_split: whether diffusers' split inference gives the layer a batch part by part
        offset: how many rows of such a batch the layer has processed
    """

    def __init__(self, terms: tuple[ImageTerm, ...] = (), loras: tuple[LoraTerm, ...] = ()) -> None:
        self.terms = terms
        self.loras = loras
        self.by_owner: dict[object, tuple[tuple[ImageTerm, ...], LoraTerm | None]] = {}
        self.text: TextKeyValue | None = None
        self.has_run = self.is_split = False
        self.offset = 0

    def replace(self, owner: object, terms: tuple[ImageTerm, ...], lora: LoraTerm | None) -> None:
        """Replace the terms of one owner."""
        self.by_owner[owner] = terms, lora
        self._collect()

    def drop(self, owner: object) -> None:
        """Remove the terms of one owner."""
        self.by_owner.pop(owner, None)
        self._collect()

    def take_rows(self, rows: int) -> tuple[tuple[ImageTerm, ...], tuple[LoraTerm, ...]]:
        """Return the terms of the next rows of a batch that comes part by part.

        Raises:
            AmbiguousBatch: more rows than the batch has
        """
        whole = (self.terms[0].key if self.terms else self.loras[0].scale).shape[0]
        start, end = self.offset, self.offset + rows
        if end > whole:
            raise AmbiguousBatch(f"split inference gives a layer rows up to {end} of a batch of {whole}")
        self.offset = end % whole
        terms = (ImageTerm(*(None if x is None else x[start:end] for x in term)) for term in self.terms)  # pyright: ignore[reportArgumentType]
        return tuple(terms), tuple(lora._replace(scale=lora.scale[start:end]) for lora in self.loras)

    def _collect(self) -> None:
        self.terms = tuple(term for terms, _ in self.by_owner.values() for term in terms)
        self.loras = tuple(lora for _, lora in self.by_owner.values() if lora is not None)
        self.has_run, self.offset = False, 0
        if not self.terms:
            self.text = None


class DecoupledAttention:
    """The attention processor that an attached adapter installs on one attention layer.

    It is a plain object, not a module: the base model's parameters and `state_dict` do not contain it. For
    the text it does what diffusers' `AttnProcessor2_0` does, operation for operation, so without image
    prompts, and with λ = 0, the layer returns the same bits as before. Any other processor of
    `PLAIN_PROCESSORS` is called for the text, and the images' part is added to its output.

    Several adapters may share one layer; each owns its own terms of the sum. Several threads may run at
    once; each has the terms that were set in it. A thread without terms of its own (as autograd's, which runs
    layers again for gradient checkpointing) and a compiled layer have those that were set last in any thread.

    The text's K and V are computed once per prompt. While image prompts are active they are cached, together
    with the very tensors they came from, and used again only for those same tensors, unchanged. In-place
    changes are noticed, except through `Tensor.data`. A compiled layer computes K and V at every step.

    Attributes:
        base: the processor that the layer had before, and will have again
        owners: the owners that may have terms here
        latest: the state that was set last in any thread
    """

    def __init__(self, base: AttentionProcessor) -> None:
        self.base = base
        self.owners: list[object] = []
        self.latest = LayerState()
        self._by_thread: dict[int, LayerState] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle the layer's own processor instead: copies are not attached."""
        return _return_base, (self.base,)

    @property
    def state(self) -> LayerState:
        """The state of this thread."""
        return self._by_thread.get(get_ident(), self.latest)

    @property
    def own_state(self) -> LayerState | None:
        """What was set in this very thread; None if nothing was."""
        return self._by_thread.get(get_ident())

    def replace_state(self, state: LayerState | None) -> None:
        """Let a state, or nothing if it is None, act in this thread in place of what its owners have set."""
        if state is None:
            self._by_thread.pop(get_ident(), None)
        else:
            self._by_thread[get_ident()] = state

    def set_terms(self, owner: object, terms: tuple[ImageTerm, ...], lora: LoraTerm | None = None) -> None:
        """Replace the owner's terms in this thread; an empty tuple removes them."""
        self.latest.replace(owner, terms, lora)
        self._by_thread.setdefault(get_ident(), LayerState()).replace(owner, terms, lora)

    def clear_terms(self, owner: object) -> None:
        """Remove an owner's terms in all threads."""
        self.latest.drop(owner)
        for thread, state in list(self._by_thread.items()):
            state.drop(owner)
            if not state.by_owner:
                self._by_thread.pop(thread, None)

    def add_owner(self, owner: object) -> None:
        """Add an owner, which has no terms yet."""
        self.owners.append(owner)

    def remove_owner(self, owner: object) -> bool:
        """Remove an owner and its terms. Return whether no owner is left."""
        self.clear_terms(owner)
        self.owners = [one for one in self.owners if one is not owner]
        return not self.owners

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
        state = self.latest if torch.compiler.is_compiling() else self.state
        state.has_run = True
        terms, loras = state.terms, state.loras
        if state.is_split and (terms or loras):
            terms, loras = state.take_rows(hidden_states.shape[0])
        if type(self.base) is not AttnProcessor2_0:
            # Not all of them take `temb`, which a transformer block never passes.
            text = self.base(attn, hidden_states, encoder_hidden_states, attention_mask)
            return text + _compute_image_output(attn, hidden_states, terms) if terms else text
        query = split_heads(project(attn.to_q, hidden_states, "q", loras), attn.heads)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key, value = _text_key_value(attn, context, state, loras)
        text = attend(query, key, value, _head_mask(attn, attention_mask, context))
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        return dropout(project(to_out, merge_heads(_add_image_attention(text, query, terms)), "out", loras))


def _add_image_attention(output: Tensor, query: Tensor, terms: Sequence[ImageTerm]) -> Tensor:
    for key, value, weight in terms:
        _check_batch(query, key, weight)
        image = attend(query, key.to(query), value.to(query))
        output = output + (image if weight is None else weight.to(query) * image)
    return output


def _compute_image_output(attn: Attention, hidden_states: Tensor, terms: Sequence[ImageTerm]) -> Tensor:
    """Return what the image prompts add to the layer's output: W_out Σ_r ..., without the bias."""
    query = split_heads(attn.to_q(hidden_states), attn.heads)
    to_out, dropout = cast(nn.ModuleList, attn.to_out)
    image = merge_heads(_add_image_attention(torch.zeros_like(query), query, terms))
    return dropout(to_out(image) - to_out(torch.zeros_like(image[:1, :1])))  # Quantized layers hide the bias.


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
    if kind not in (AttnProcessor2_0, DecoupledAttention, *PLAIN_PROCESSORS):
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
    if type(base) is not AttnProcessor2_0:
        raise AttachmentError(
            f"{name} has the attention processor {type(base).__name__}; this adapter's LoRA needs "
            "AttnProcessor2_0: call unet.set_attn_processor(AttnProcessor2_0()) before attaching"
        )


def _return_base(processor: AttentionProcessor) -> AttentionProcessor:
    return processor


def _check_batch(query: Tensor, image_key: Tensor, weight: Tensor | None) -> None:
    # Attention would silently broadcast a batch of one over all samples.
    if query.shape[0] != image_key.shape[0]:
        raise AmbiguousBatch(
            f"the batch has {query.shape[0]} samples, but the image prompts are for {image_key.shape[0]}; "
            "a layer that is given a part of the batch only (split inference, chunking) is supported where "
            "diffusers' SplitInferenceModule splits it"
        )
    if weight is not None and weight.shape[2] not in (1, query.shape[2]):
        raise AmbiguousBatch(f"a layer has {query.shape[2]} positions, but its mask has {weight.shape[2]}")


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
    return all(map(_is_plain_linear, get_text_projections(attn)))


def _is_plain_linear(linear: Any) -> bool:
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
