"""Calls of one U-Net by several generations, put together into one call of a fixed number of rows.

A generation's call has a row for each picture and branch of guidance. Calls with equal shapes and options are
put one after another and filled up to a bucket of 1, 2, 4, 8, ... rows. In a bucket the bits of a row do not
depend on the other rows, so the same seed in the same bucket gives the same picture.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from imprompt.attention.processor import LayerState
from imprompt.attention.sharing import RowTerms, list_attention_layers, merge_terms, read_terms, use_states

_REMEMBERED = 16
"""How many merged values of the latest calls are kept."""

_LASTING = ("encoder_hidden_states", "added_cond_kwargs", "timestep_cond")
"""The arguments that a generation passes unchanged at every step; merged ones are kept."""


class DenoiserCall(NamedTuple):
    """One generation's call of a U-Net.

    Args:
        denoiser: runs it
        arguments: those of the U-Net's forward, by name
        rows: the rows of the batch
        key: equal for calls of a denoiser that can be put together
        terms: what acts in each attention layer
    """

    denoiser: "MergedDenoiser"
    arguments: Mapping[str, Any]
    rows: int
    key: Hashable
    terms: Sequence[RowTerms]


def choose_bucket(rows: int) -> int:
    """Return the smallest power of two that is not less than `rows`."""
    return 1 << (rows - 1).bit_length()


class MergedDenoiser:
    """Runs several calls of one U-Net as one.

    Args:
        unet: the U-Net
        fixed_rows: run every call with this many rows, if it has not more; by default in the smallest bucket
    """

    def __init__(self, unet: nn.Module, fixed_rows: int | None = None) -> None:
        self.unet = unet
        self.layers: list[Attention] = list_attention_layers(unet)
        self.fixed_rows = fixed_rows
        self._signature = inspect.signature(unet.forward)
        self._states = _Memory()
        self._tensors = _Memory()

    def read_call(self, *args: Any, **kwargs: Any) -> DenoiserCall:
        """Return a call with these arguments of the U-Net's forward, and what acts in this thread."""
        arguments = self._signature.bind(*args, **kwargs).arguments
        sample = arguments["sample"]
        rows = sample.shape[0]
        # The U-Net converts a time step to float32 itself, before it uses it.
        timestep = torch.as_tensor(arguments["timestep"], device=sample.device).float()
        arguments |= {"timestep": timestep.reshape(-1).expand(rows), "return_dict": False}
        key = tuple((name, _describe(value, rows)) for name, value in sorted(arguments.items()))
        return DenoiserCall(self, arguments, rows, key, read_terms(self.layers))

    def bucket(self, rows: int) -> int:
        """Return the number of rows in which a batch is run."""
        return choose_bucket(max(rows, self.fixed_rows or 1))

    @torch.no_grad()
    def run(self, calls: Sequence[DenoiserCall]) -> list[Tensor]:
        """Return the output of each call, "rows channels height width"; all calls have equal keys."""
        counts = [call.rows for call in calls]
        rows = self.bucket(sum(counts))
        arguments = {
            name: _combine(
                lambda *values, name=name: self._merge(values, counts, rows, is_kept=name in _LASTING),
                *(call.arguments[name] for call in calls),
            )
            for name in calls[0].arguments
        }
        with use_states(self.layers, self._merge_states(calls, counts, rows)):
            output = self.unet(**arguments)[0]
        return list(output[: sum(counts)].split(counts))

    def _merge(self, values: Sequence[Any], counts: Sequence[int], rows: int, *, is_kept: bool) -> Any:
        first = values[0]
        if not isinstance(first, Tensor) or not _has_rows(first, counts[0]):
            return first
        if not is_kept:
            return _concatenate(values, rows)
        return self._tensors.find(values, rows, lambda: _concatenate(values, rows))

    def _merge_states(
        self, calls: Sequence[DenoiserCall], counts: Sequence[int], rows: int
    ) -> list[LayerState]:
        """Return the layers' states: for the same terms the same objects, which keep the text's K and V."""
        by_layer = list(zip(*(call.terms for call in calls), strict=True))
        sources = [part for parts in by_layer for term in parts for part in term]
        return self._states.find(
            sources, (rows, *counts), lambda: [merge_terms(parts, counts, rows) for parts in by_layer]
        )


class _Memory:
    """The latest results, with the very objects that they were made of."""

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], tuple[object, Any]] = {}

    def find(self, sources: Sequence[Any], sizes: object, make: Callable[[], Any]) -> Any:
        """Return the result for these objects, unchanged since; or make it, and forget the oldest one."""
        versions = tuple(source._version for source in sources if isinstance(source, Tensor))
        key = (*map(id, sources), sizes, versions)
        entry = self._entries.pop(key, None) or (tuple(sources), make())
        self._entries[key] = entry
        while len(self._entries) > _REMEMBERED:
            del self._entries[next(iter(self._entries))]
        return entry[1]


def _concatenate(values: Sequence[Tensor], rows: int) -> Tensor:
    """Put rows one after another; the first row is repeated to fill up the batch."""
    missing = rows - sum(value.shape[0] for value in values)
    padding = [values[0][:1].expand(missing, *values[0].shape[1:])] if missing else []
    return torch.cat([*values, *padding])


def _has_rows(value: Tensor, rows: int) -> bool:
    return value.ndim > 0 and value.shape[0] == rows


def _describe(value: Any, rows: int) -> Hashable:
    """Return a value that is equal for arguments that can be put together."""
    if isinstance(value, Tensor):
        own = () if _has_rows(value, rows) else (id(value),)
        return value.shape[1:], value.dtype, value.device, *own
    if isinstance(value, Mapping):
        return tuple((name, _describe(inner, rows)) for name, inner in sorted(value.items()))
    if isinstance(value, tuple | list):
        return tuple(_describe(inner, rows) for inner in value)
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def _combine(merge: Callable[..., Any], *values: Any) -> Any:
    """Merge the leaves of equal structures."""
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _combine(merge, *(value[name] for value in values)) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(_combine(merge, *inner) for inner in zip(*values, strict=True))
    return merge(*values)
