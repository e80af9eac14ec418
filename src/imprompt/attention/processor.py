"""Decoupled cross-attention: the text attends as before, every image prompt beside it.

    output = Attn(Q, K, V) + Σ_r m_r · Attn(Q, K'_r, λ_r V'_r)

Ye et al. 2023, https://arxiv.org/abs/2308.06721, equation 5, with λ folded into V' (attention is linear in
V'), and m_r a mask over the queries. The same query Q serves every term. K'_r and λ_r V'_r do not depend on
the time step, so they arrive here finished, one row per sample; nothing of the image branch but its attention
runs inside the sampling loop.

Face adapters bring a LoRA too, on self-attention as well: W becomes W + s · up down for the query, key, value
and output matrices of the base (never for W'_k, W'_v).
"""

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, Literal, NamedTuple, cast

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

from imprompt.errors import AmbiguousBatch, AttachmentError


class KeyValue(NamedTuple):
    """A key and a value, each with its heads split: batch heads length head_dim."""

    key: Tensor
    value: Tensor


class Term(NamedTuple):
    """One image prompt at one layer: K' and λV', heads split, and m, "batch 1 queries 1" (None: 1)."""

    key: Tensor
    value: Tensor
    weight: Tensor | None = None


Place = Literal["q", "k", "v", "out"]
"""The four matrices of an attention layer."""


class LoraTerm(NamedTuple):
    """One LoRA at one layer: (down, up) for some of its matrices, and its strength s, "batch 1 1"."""

    pairs: dict[Place, tuple[Tensor, Tensor]]
    scale: Tensor


AttentionProcessor = Callable[..., Tensor]
"""What diffusers calls in an attention layer."""

PLAIN_PROCESSORS = (AttnProcessor, SlicedAttnProcessor, XFormersAttnProcessor, FusedAttnProcessor2_0)
"""Other ways of diffusers to compute the same attention: they are called as they are, for the text."""


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

    `mask` is added to the logits, or says which keys may be seen; its `mask_len` is 1 or `query_len`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class LayerTerms:
    """All that acts in one layer for one thread, by its owners.

    Attributes:
        images: all terms of the sum
        loras: all LoRAs that act
        has_acted: whether the layer has run since the last change
        text: the text's K and V
        offset: how many rows of the batch a layer has seen that is given it part by part
        is_split: whether diffusers' split inference gives it so
    """

    def __init__(self) -> None:
        self.images: tuple[Term, ...] = ()
        self.loras: tuple[LoraTerm, ...] = ()
        self.owned: dict[object, tuple[tuple[Term, ...], LoraTerm | None]] = {}
        self.text: RememberedText | None = None
        self.has_acted = self.is_split = False
        self.offset = 0

    def replace(self, owner: object, images: tuple[Term, ...], lora: LoraTerm | None) -> None:
        """Replace what one owner has."""
        self.owned[owner] = images, lora
        self._add_up()

    def drop(self, owner: object) -> None:
        """Forget an owner."""
        self.owned.pop(owner, None)
        self._add_up()

    def part(self, rows: int) -> tuple[tuple[Term, ...], tuple[LoraTerm, ...]]:
        """Cut the terms for the next rows of a batch that comes part by part.

        Raises:
            AmbiguousBatch: more rows than the batch has
        """
        whole = (self.images[0].key if self.images else self.loras[0].scale).shape[0]
        start, end = self.offset, self.offset + rows
        if end > whole:
            raise AmbiguousBatch(f"split inference gives a layer rows up to {end} of a batch of {whole}")
        self.offset = end % whole
        images = (Term(*(None if x is None else x[start:end] for x in term)) for term in self.images)  # pyright: ignore[reportArgumentType]
        return tuple(images), tuple(lora._replace(scale=lora.scale[start:end]) for lora in self.loras)

    def _add_up(self) -> None:
        self.images = tuple(term for terms, _ in self.owned.values() for term in terms)
        self.loras = tuple(lora for _, lora in self.owned.values() if lora is not None)
        self.has_acted, self.offset = False, 0
        if not self.images:
            self.text = None


class DecoupledAttention:
    """The attention processor that an attached adapter puts on one attention layer.

    It is a plain object, no module: the base model's parameters, `state_dict` and moves know nothing of it.
    On the text it does what diffusers' `AttnProcessor2_0` does, operation for operation, so without image
    prompts, and with λ = 0, the layer gives the same bits as before. Any other processor of
    `PLAIN_PROCESSORS` goes on computing the text's part; the images' part is added to what it returns.

    Several adapters may share one layer; each owns its own terms of the sum. Several threads may draw at
    once: each has the terms that were shown in it. A thread in which none were (as autograd's own, which runs
    layers again for gradient checkpointing) and a compiled layer have those that were shown last in any.

    The text's K and V are computed once per prompt: they are kept while image prompts act, together with the
    very tensors they came from, and used again only for those same tensors, unchanged. In-place changes are
    noticed, except those made through `Tensor.data`; a compiled layer computes them at every step.

    Attributes:
        base: the processor that was here before, and will be again
        owners: whose terms may act here
        latest: what was shown last in any thread
    """

    def __init__(self, base: AttentionProcessor) -> None:
        self.base = base
        self.owners: list[object] = []
        self.latest = LayerTerms()
        self._by_thread: dict[int, LayerTerms] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """A copied or pickled layer has its own processor again: copies are not attached."""
        return _itself, (self.base,)

    @property
    def terms(self) -> LayerTerms:
        """What acts in this thread."""
        return self._by_thread.get(get_ident(), self.latest)

    @property
    def images(self) -> tuple[Term, ...]:
        """All terms of the sum that act in this thread."""
        return self.terms.images

    def show(self, owner: object, images: tuple[Term, ...], lora: LoraTerm | None = None) -> None:
        """Replace the owner's terms in this thread; an empty tuple takes them away."""
        self.latest.replace(owner, images, lora)
        self._by_thread.setdefault(get_ident(), LayerTerms()).replace(owner, images, lora)

    def end(self, owner: object) -> None:
        """Take an owner's terms away in all threads."""
        self.latest.drop(owner)
        for thread, terms in list(self._by_thread.items()):
            terms.drop(owner)
            if not terms.owned:
                self._by_thread.pop(thread, None)

    def adopt(self, owner: object) -> None:
        """Accept a new owner, which has no terms yet."""
        self.owners.append(owner)

    def disown(self, owner: object) -> bool:
        """Forget an owner and its terms. Returns whether no owner is left."""
        self.end(owner)
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
        """One layer: `hidden_states` attend to the text and to every image prompt.

        Raises:
            AmbiguousBatch: image prompts laid out for another batch size
        """
        terms = self.latest if torch.compiler.is_compiling() else self.terms
        terms.has_acted = True
        images, loras = terms.images, terms.loras
        if terms.is_split and (images or loras):
            images, loras = terms.part(hidden_states.shape[0])
        if type(self.base) is not AttnProcessor2_0:
            # Not all of them take `temb`, and in a transformer block it is never given.
            text = self.base(attn, hidden_states, encoder_hidden_states, attention_mask)
            return text + _images_alone(attn, hidden_states, images) if images else text
        query = split_heads(projected(attn.to_q, hidden_states, "q", loras), attn.heads)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key, value = _text_key_value(attn, context, terms, loras)
        text = attend(query, key, value, _head_mask(attn, attention_mask, context))
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        return dropout(projected(to_out, merge_heads(_with_images(text, query, images)), "out", loras))


def _with_images(output: Tensor, query: Tensor, images: Sequence[Term]) -> Tensor:
    for key, value, weight in images:
        _check_batch(query, key, weight)
        image = attend(query, key.to(query), value.to(query))
        output = output + (image if weight is None else weight.to(query) * image)
    return output


def _images_alone(attn: Attention, hidden_states: Tensor, images: Sequence[Term]) -> Tensor:
    """What the image prompts add to the layer's output: W_out Σ_r ..., without the bias."""
    query = split_heads(attn.to_q(hidden_states), attn.heads)
    to_out, dropout = cast(nn.ModuleList, attn.to_out)
    output = to_out(merge_heads(_with_images(torch.zeros_like(query), query, images)))
    return dropout(output if to_out.bias is None else output - to_out.bias)


def _text_key_value(
    attn: Attention, context: Tensor, terms: LayerTerms, loras: Sequence[LoraTerm]
) -> KeyValue:
    if not terms.images or terms.is_split or not _may_remember(attn, context):
        return project_text(attn, context, loras)
    if terms.text is None or not terms.text.is_of(attn, context, loras):
        terms.text = RememberedText(attn, context, loras)
    return terms.text.key_value


class RememberedText:
    """The text's K and V of one layer, with the tensors that they were computed from.

    Because it holds the tensors themselves, no other tensor can come to be taken for them.
    """

    def __init__(self, attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> None:
        self.sources = _sources(attn, context, loras)
        self.state = _state(self.sources)
        self.key_value = project_text(attn, context, loras)

    def is_of(self, attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> bool:
        """Whether K and V of this context would come out the same."""
        sources = _sources(attn, context, loras)
        same = len(sources) == len(self.sources)
        same = same and all(mine is theirs for mine, theirs in zip(self.sources, sources, strict=True))
        return same and self.state == _state(sources)


def project_text(attn: Attention, context: Tensor, loras: Sequence[LoraTerm] = ()) -> KeyValue:
    """K = c_t W_k and V = c_t W_v, heads split."""
    to_k, to_v = text_projections(attn)
    key, value = projected(to_k, context, "k", loras), projected(to_v, context, "v", loras)
    return KeyValue(split_heads(key, attn.heads), split_heads(value, attn.heads))


def projected(
    linear: nn.Module, x: Float[Tensor, "batch length _"], place: Place, loras: Sequence[LoraTerm]
) -> Float[Tensor, "batch length _"]:
    """W x + Σ s · up (down x)."""
    output = linear(x)
    for pairs, scale in loras:
        if place in pairs:
            down, up = pairs[place]
            output = output + scale.to(x) * F.linear(F.linear(x, down.to(x)), up.to(x))
    return output


def text_projections(attn: Attention) -> tuple[Any, Any]:
    """W_k and W_v of a layer of the base model: linear, or a user's LoRA around that."""
    assert attn.to_k is not None
    assert attn.to_v is not None
    return attn.to_k, attn.to_v


def check_supported(name: str, attn: Attention) -> None:
    """Refuse an attention layer whose arithmetic we would change.

    Raises:
        AttachmentError: a processor that is none of diffusers' plain ones, or an option that no Stable
            Diffusion uses
    """
    kind = type(attn.processor)
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
    """Refuse an attention layer that a LoRA cannot act in.

    Raises:
        AttachmentError: another processor than `AttnProcessor2_0`
    """
    processor = attn.processor
    base = processor.base if isinstance(processor, DecoupledAttention) else processor
    if type(base) is not AttnProcessor2_0:
        raise AttachmentError(
            f"{name} has the attention processor {type(base).__name__}; this adapter's LoRA needs "
            "AttnProcessor2_0: call unet.set_attn_processor(AttnProcessor2_0()) before attaching"
        )


def _itself(processor: AttentionProcessor) -> AttentionProcessor:
    return processor


def _check_batch(query: Tensor, image_key: Tensor, weight: Tensor | None) -> None:
    # Attention would broadcast a batch of one over all samples without a word.
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


def _may_remember(attn: Attention, context: Tensor) -> bool:
    """Only where K and V are a pure function of tensors that we can watch."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or context.is_inference():
        return False
    return all(map(_is_plain, text_projections(attn)))


def _is_plain(linear: Any) -> bool:
    # An instance's own `forward` is how accelerate offloads weights; LoRA and quantisation are other classes.
    hooked = linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__
    plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
    return plain and not hooked and not linear.weight.is_inference()


def _sources(attn: Attention, context: Tensor, loras: Sequence[LoraTerm]) -> tuple[Tensor | None, ...]:
    to_k, to_v = text_projections(attn)
    low_rank = (x for lora in loras for pair in lora.pairs.values() for x in (*pair, lora.scale))
    return context, to_k.weight, to_k.bias, to_v.weight, to_v.bias, *low_rank


def _state(sources: tuple[Tensor | None, ...]) -> tuple[object, ...]:
    """What changes when a tensor is written to or moved, or when autocast would compute in another type."""
    tensors = [source for source in sources if source is not None]
    kind = tensors[0].device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return autocast, *((tensor._version, tensor.data_ptr()) for tensor in tensors)
