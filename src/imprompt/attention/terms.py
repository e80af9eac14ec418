"""What acts at one layer: image prompts and LoRAs, by their owners, for each thread."""

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from imprompt.attention.choices import Place
from imprompt.errors import AmbiguousBatch


class KeyValue(NamedTuple):
    """A key and a value: "batch length inner_dim", or with split heads "batch heads length head_dim"."""

    key: Tensor
    value: Tensor


class ImageTerm(NamedTuple):
    """One image prompt at one layer: K' and λV' with split heads, and m, "batch 1 queries 1" (None: 1)."""

    key: Tensor
    value: Tensor
    weight: Tensor | None = None


class JointTerm(NamedTuple):
    """One image prompt at one layer of Stable Diffusion 3.5: K', V' and λm, and the attention's norms."""

    key: Tensor
    """K' with split heads, normalized."""
    value: Tensor
    """V' with split heads."""
    weight: Tensor
    """λm, "batch 1 1 1" or "batch 1 queries 1"."""
    query_norm: Tensor
    """The learned weight of the norm of the latents' query, "head_dim"."""
    key_norm: Tensor
    """The learned weight of the norm of the latents' key, "head_dim"."""


Term = ImageTerm | JointTerm


class LoraTerm(NamedTuple):
    """One LoRA at one layer: (down, up) for some of its matrices, and its strength s, "batch 1 1"."""

    pairs: dict[Place, tuple[Tensor, Tensor]]
    scale: Tensor


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


def add_image_attention(output: Tensor, query: Tensor, terms: Sequence[Term]) -> Tensor:
    """Return output + Σ_r m_r · Attn(Q, K'_r, λ_r V'_r), all with split heads.

    Raises:
        AmbiguousBatch: the image prompts are for another batch size, or a mask for other positions
    """
    for key, value, weight, *_ in terms:
        check_batch(query, key, weight)
        image = attend(query, key.to(query), value.to(query))
        output = output + (image if weight is None else weight.to(query) * image)
    return output


def check_batch(query: Tensor, image_key: Tensor, weight: Tensor | None) -> None:
    """Refuse image prompts for another batch.

    Raises:
        AmbiguousBatch: another number of samples, or a mask for another number of positions
    """
    # Attention would silently broadcast a batch of one over all samples.
    if query.shape[0] != image_key.shape[0]:
        raise AmbiguousBatch(
            f"the batch has {query.shape[0]} samples, but the image prompts are for {image_key.shape[0]}; "
            "a layer that is given a part of the batch only (split inference, chunking) is supported where "
            "diffusers' SplitInferenceModule splits it"
        )
    if weight is not None and weight.shape[2] not in (1, query.shape[2]):
        raise AmbiguousBatch(f"a layer has {query.shape[2]} positions, but its mask has {weight.shape[2]}")


class LayerState:
    """The image prompts and LoRAs of one layer for one thread, by their owners.

    Attributes:
        terms: all terms of the sum
        loras: all LoRAs
        has_run: whether the layer has run since the last change
        text: the text's K and V that `DecoupledAttention` keeps here
        is_split: whether diffusers' split inference gives the layer a batch part by part
        offset: how many rows of such a batch the layer has processed
    """

    def __init__(self, terms: tuple[Term, ...] = (), loras: tuple[LoraTerm, ...] = ()) -> None:
        self.terms = terms
        self.loras = loras
        self.by_owner: dict[object, tuple[tuple[Term, ...], LoraTerm | None]] = {}
        self.text: Any = None
        self.has_run = self.is_split = False
        self.offset = 0

    def replace(self, owner: object, terms: tuple[Term, ...], lora: LoraTerm | None) -> None:
        """Replace the terms of one owner."""
        self.by_owner[owner] = terms, lora
        self._collect()

    def drop(self, owner: object) -> None:
        """Remove the terms of one owner."""
        self.by_owner.pop(owner, None)
        self._collect()

    def take_rows(self, rows: int) -> tuple[tuple[Term, ...], tuple[LoraTerm, ...]]:
        """Return the terms of the next rows of a batch that comes part by part.

        Raises:
            AmbiguousBatch: more rows than the batch has
        """
        whole = (self.terms[0].key if self.terms else self.loras[0].scale).shape[0]
        start, end = self.offset, self.offset + rows
        if end > whole:
            raise AmbiguousBatch(f"split inference gives a layer rows up to {end} of a batch of {whole}")
        self.offset = end % whole
        terms = (type(term)(*(None if x is None else x[start:end] for x in term)) for term in self.terms)  # pyright: ignore[reportArgumentType]
        return tuple(terms), tuple(lora._replace(scale=lora.scale[start:end]) for lora in self.loras)

    def _collect(self) -> None:
        self.terms = tuple(term for terms, _ in self.by_owner.values() for term in terms)
        self.loras = tuple(lora for _, lora in self.by_owner.values() if lora is not None)
        self.has_run, self.offset = False, 0
        if not self.terms:
            self.text = None


class LayerTerms:
    """The terms that act at one layer, in whatever form a denoiser takes them.

    Several adapters may share one layer; each owns its own terms of the sum. Several threads may run at
    once; each has the terms that were set in it. A thread without terms of its own (as autograd's, which runs
    layers again for gradient checkpointing) and a compiled layer have those that were set last in any thread.

    Attributes:
        owners: the owners that may have terms here
        latest: the state that was set last in any thread
    """

    def __init__(self) -> None:
        self.owners: list[object] = []
        self.latest = LayerState()
        self._by_thread: dict[int, LayerState] = {}

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

    def set_terms(self, owner: object, terms: tuple[Term, ...], lora: LoraTerm | None = None) -> None:
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

    def find_running_state(self) -> LayerState:
        """Return the state of the layer that is about to run, and note that it has run."""
        state = self.latest if torch.compiler.is_compiling() else self.state
        state.has_run = True
        return state


class LayerProcessor(LayerTerms):
    """An attention processor that takes the place of the layer's own while an adapter is attached.

    It is a plain object, not a module: the base model's parameters and `state_dict` do not contain it.

    Attributes:
        base: the processor that the layer had before, and will have again
    """

    def __init__(self, base: Callable[..., Any]) -> None:
        super().__init__()
        self.base = base

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle the layer's own processor instead: copies are not attached."""
        return _return_base, (self.base,)


def _return_base(processor: Callable[..., Any]) -> Callable[..., Any]:
    """Return the processor: what `LayerProcessor` is copied and pickled as."""
    return processor
