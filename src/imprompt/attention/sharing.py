"""One forward pass of a U-Net for several generations, each with its own image prompts.

Each generation runs in a thread of its own, on a stand-in for the U-Net: the same layers, but another
forward. The stand-in reads what acts in the layers for its thread. `merge_terms` makes of these, for each
layer, what acts in a batch of all rows.

A row's output does not depend on the other rows. A term that only some rows have becomes K' = 0 and V' = 0
for the others, which adds zeros to their output, and every row adds its own terms in its own order.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from imprompt.attention.processor import DecoupledAttention, ImageTerm, LayerState, LoraTerm


class RowTerms(NamedTuple):
    """What acts in one layer for the rows of one generation."""

    terms: tuple[ImageTerm, ...] = ()
    loras: tuple[LoraTerm, ...] = ()


def make_stand_in(unet: nn.Module, forward: Callable[..., Any]) -> Any:
    """Return a module with all layers and settings of a U-Net, hooks of its own, and another forward.

    Args:
        unet: it is only read; its weights and layers are shared
        forward: takes the arguments of the U-Net's forward
    """
    stand_in = copy.copy(unet)
    for name, value in vars(unet).items():
        if isinstance(value, OrderedDict) and name.endswith(
            ("_hooks", "_hooks_with_kwargs", "_always_called")
        ):
            vars(stand_in)[name] = OrderedDict()
    vars(stand_in)["forward"] = forward
    return stand_in


def list_attention_layers(unet: nn.Module) -> list[Attention]:
    """Return all attention layers of a U-Net, in the order of its modules."""
    return [module for module in unet.modules() if isinstance(module, Attention)]


def read_terms(layers: Sequence[Attention]) -> list[RowTerms]:
    """Return what acts in each layer for the generation of this thread."""
    states = (_own_state(layer) for layer in layers)
    return [RowTerms() if state is None else RowTerms(state.terms, state.loras) for state in states]


def note_run(layers: Sequence[Attention]) -> None:
    """Note, for the generation of this thread, that its layers have run in a batch with others."""
    for layer in layers:
        if (state := _own_state(layer)) is not None:
            state.has_run = True


def merge_terms(parts: Sequence[RowTerms], counts: Sequence[int], rows: int) -> LayerState:
    """Return what acts in a layer for a batch of several generations' rows, one after another.

    Args:
        parts: what acts for each generation
        counts: the rows of each generation
        rows: the rows of the batch; those beyond the generations' own are padding, where nothing acts
    """
    padding = rows - sum(counts)
    if padding:
        parts, counts = [*parts, RowTerms()], [*counts, padding]
    slots = sorted({(place, term.key.shape[2]) for part in parts for place, term in enumerate(part.terms)})
    terms = [_merge_slot([_find_term(part, *slot) for part in parts], counts) for slot in slots]
    return LayerState(tuple(terms), _merge_loras(parts, counts))


@contextmanager
def use_states(layers: Sequence[Attention], states: Sequence[LayerState]) -> Iterator[None]:
    """Let these states act in the layers, in this thread, inside the context."""
    processors = [layer.processor for layer in layers]
    pairs = [
        (processor, state)
        for processor, state in zip(processors, states, strict=True)
        if isinstance(processor, DecoupledAttention)
    ]
    for processor, state in pairs:
        processor.replace_state(state)
    try:
        yield
    finally:
        for processor, _ in pairs:
            processor.replace_state(None)


def _own_state(layer: Attention) -> LayerState | None:
    processor = layer.processor
    return processor.own_state if isinstance(processor, DecoupledAttention) else None


def _find_term(part: RowTerms, place: int, tokens: int) -> ImageTerm | None:
    """Return the term at a place of the sum, if there is one and it has this number of tokens."""
    term = part.terms[place] if place < len(part.terms) else None
    return term if term is not None and term.key.shape[2] == tokens else None


def _merge_slot(terms: Sequence[ImageTerm | None], counts: Sequence[int]) -> ImageTerm:
    like = next(term for term in terms if term is not None)
    keys = [
        _rows_or_zeros(term and term.key, like.key, count) for term, count in zip(terms, counts, strict=True)
    ]
    values = [
        _rows_or_zeros(term and term.value, like.value, count)
        for term, count in zip(terms, counts, strict=True)
    ]
    weights = [term and term.weight for term in terms]
    return ImageTerm(torch.cat(keys), torch.cat(values), _merge_weights(weights, counts))


def _rows_or_zeros(value: Tensor | None, like: Tensor, count: int) -> Tensor:
    return like.new_zeros(count, *like.shape[1:]) if value is None else value


def _merge_weights(weights: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """Return "batch 1 queries 1"; rows without a mask have 1 everywhere."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return None
    queries = max(weight.shape[2] for weight in given)
    rows = [
        given[0].new_ones(count, 1, queries, 1) if weight is None else weight.expand(-1, -1, queries, -1)
        for weight, count in zip(weights, counts, strict=True)
    ]
    return torch.cat(rows)


def _merge_loras(parts: Sequence[RowTerms], counts: Sequence[int]) -> tuple[LoraTerm, ...]:
    """Return each LoRA once, with strength 0 in the rows that do not have it."""
    distinct = {_identify(place, lora): lora for part in parts for place, lora in enumerate(part.loras)}
    return tuple(_merge_lora(key, distinct[key], parts, counts) for key in sorted(distinct))


def _merge_lora(
    key: tuple[int, ...], lora: LoraTerm, parts: Sequence[RowTerms], counts: Sequence[int]
) -> LoraTerm:
    own = [{_identify(place, one): one.scale for place, one in enumerate(part.loras)} for part in parts]
    scales = [
        _rows_or_zeros(scales.get(key), lora.scale, count) for scales, count in zip(own, counts, strict=True)
    ]
    return LoraTerm(lora.pairs, torch.cat(scales))


def _identify(place: int, lora: LoraTerm) -> tuple[int, ...]:
    return place, *(matrix.data_ptr() for pair in lora.pairs.values() for matrix in pair)
