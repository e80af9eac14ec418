"""Decoupled cross-attention: the text attends as before, every image prompt beside it.

    output = Attn(Q, K, V) + Σ_r Attn(Q, K'_r, λ_r V'_r)

Ye et al. 2023, https://arxiv.org/abs/2308.06721, equation 5, with λ folded into V' (attention is linear in
V'). The same query Q serves every term. K'_r and λ_r V'_r do not depend on the time step, so they arrive
here finished, one row per sample; nothing of the image branch but its attention runs inside the sampling
loop.
"""

from typing import NamedTuple, cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.errors import AmbiguousBatch, AttachmentError


class KeyValue(NamedTuple):
    """A key and a value, each with its heads split: batch heads length head_dim."""

    key: Tensor
    value: Tensor


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


class DecoupledAttention:
    """The attention processor that an attached adapter puts on one cross-attention layer.

    It is a plain object, no module: the base model's parameters, `state_dict` and moves know nothing of it.
    On the text it does what diffusers' `AttnProcessor2_0` does, operation for operation, so without image
    prompts, and with λ = 0, the layer gives the same bits as before.

    Several adapters may share one layer; each owns its own terms of the sum.

    The text's K and V are computed once per prompt: they are kept while image prompts act, together with the
    very tensors they came from, and used again only for those same tensors, unchanged. In-place changes are
    noticed, except those made through `Tensor.data`; a compiled layer computes them at every step.

    Attributes:
        base: the processor that was here before, and will be again
        images: all terms of the sum, each batch heads tokens head_dim
    """

    def __init__(self, base: AttnProcessor2_0) -> None:
        self.base = base
        self.images: tuple[KeyValue, ...] = ()
        self._owned: dict[object, tuple[KeyValue, ...]] = {}
        self._text: RememberedText | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """A copied or pickled layer has its own processor again: copies are not attached."""
        return _itself, (self.base,)

    def show(self, owner: object, images: tuple[KeyValue, ...]) -> None:
        """Replace the owner's terms; an empty tuple takes them away."""
        self._owned[owner] = images
        self.images = tuple(term for terms in self._owned.values() for term in terms)
        if not self.images:
            self._text = None

    def disown(self, owner: object) -> bool:
        """Forget an owner and its terms. Returns whether no owner is left."""
        self.show(owner, ())
        del self._owned[owner]
        return not self._owned

    def adopt(self, owner: object) -> None:
        """Accept a new owner, which has no terms yet."""
        self._owned[owner] = ()

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
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key, value = self._text_key_value(attn, context)
        output = attend(query, key, value, _head_mask(attn, attention_mask, context))
        for image in self.images:
            _check_batch(query, image.key)
            output = output + attend(query, image.key.to(query), image.value.to(query))
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        return dropout(to_out(merge_heads(output)))

    def _text_key_value(self, attn: Attention, context: Tensor) -> KeyValue:
        if not self.images or not _may_remember(attn, context):
            return project_text(attn, context)
        if self._text is None or not self._text.is_of(attn, context):
            self._text = RememberedText(attn, context)
        return self._text.key_value


class RememberedText:
    """The text's K and V of one layer, with the tensors that they were computed from.

    Because it holds the tensors themselves, no other tensor can come to be taken for them.
    """

    def __init__(self, attn: Attention, context: Tensor) -> None:
        self.sources = _sources(attn, context)
        self.state = _state(self.sources)
        self.key_value = project_text(attn, context)

    def is_of(self, attn: Attention, context: Tensor) -> bool:
        """Whether K and V of this context would come out the same."""
        sources = _sources(attn, context)
        same = all(mine is theirs for mine, theirs in zip(self.sources, sources, strict=True))
        return same and self.state == _state(sources)


def project_text(attn: Attention, context: Tensor) -> KeyValue:
    """K = c_t W_k and V = c_t W_v, heads split."""
    to_k, to_v = text_projections(attn)
    return KeyValue(split_heads(to_k(context), attn.heads), split_heads(to_v(context), attn.heads))


def text_projections(attn: Attention) -> tuple[nn.Linear, nn.Linear]:
    """W_k and W_v of a layer of the base model."""
    assert attn.to_k is not None
    assert attn.to_v is not None
    return attn.to_k, attn.to_v


def check_supported(name: str, attn: Attention) -> None:
    """Refuse a cross-attention layer whose arithmetic we would change.

    Raises:
        AttachmentError: another processor than `AttnProcessor2_0`, or an option that no Stable Diffusion uses
    """
    kind = type(attn.processor)
    if kind not in (AttnProcessor2_0, DecoupledAttention):
        raise AttachmentError(
            f"{name} has the attention processor {kind.__name__}, and only AttnProcessor2_0 is supported; "
            "undo what put it there, or call unet.set_attn_processor(AttnProcessor2_0()) before attaching"
        )
    extras = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
    used = [extra for extra in extras if getattr(attn, extra, None) is not None]
    used += ["residual_connection"] if attn.residual_connection else []
    used += ["rescale_output_factor"] if attn.rescale_output_factor != 1.0 else []
    if used:
        raise AttachmentError(f"{name} uses {', '.join(used)}, which the image branch is not defined for")


def _itself(processor: AttnProcessor2_0) -> AttnProcessor2_0:
    return processor


def _check_batch(query: Tensor, image_key: Tensor) -> None:
    # Attention would broadcast a batch of one over all samples without a word.
    if query.shape[0] != image_key.shape[0]:
        raise AmbiguousBatch(
            f"the batch has {query.shape[0]} samples, but the image prompts are for {image_key.shape[0]}"
        )


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


def _is_plain(linear: nn.Linear) -> bool:
    # An instance's own `forward` is how accelerate offloads weights; LoRA and quantisation are other classes.
    hooked = linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__
    plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
    return plain and not hooked and not linear.weight.is_inference()


def _sources(attn: Attention, context: Tensor) -> tuple[Tensor | None, ...]:
    to_k, to_v = text_projections(attn)
    return context, to_k.weight, to_k.bias, to_v.weight, to_v.bias


def _state(sources: tuple[Tensor | None, ...]) -> tuple[object, ...]:
    """What changes when a tensor is written to or moved, or when autocast would compute in another type."""
    tensors = [source for source in sources if source is not None]
    kind = tensors[0].device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return autocast, *((tensor._version, tensor.data_ptr()) for tensor in tensors)
