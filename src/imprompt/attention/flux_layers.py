"""An adapter's layers in FLUX.1: forward hooks on the attention of its blocks; no processor is touched.

Two kinds of adapters are published. Q is the block's query after the base's norm and before rotation.

    XLabs       picture ← block(picture) + Σ m · Attn(Q, K', λV')     double blocks; no gate, no W_out
    InstantX    attention ← attention + Σ m · Attn(Q, K', λV')        all blocks; before W_out

In a double block InstantX's term is for the rows of the picture. In a single block the rows of the text stand
in the same sequence, and get it too. W_out is linear, so the term is added behind it, without the bias.
Sources: XLabs-AI/x-flux, src/flux/modules/layers.py; InstantX/FLUX.1-dev-IP-Adapter, attention_processor.py.
"""

import weakref
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.attention.cache_contexts import unwatch_contexts, watch_contexts
from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.denoiser_layers import DenoiserLayers, QueryGrid
from imprompt.attention.layers import Shapes, check_fit
from imprompt.attention.processor import project_without_bias
from imprompt.attention.terms import LayerTerms, add_image_attention, merge_heads
from imprompt.errors import AmbiguousBatch, AttachmentError

Geometry = tuple[int, tuple[tuple[int, int], ...]]
"""The number of the text's rows; height and width of each picture in the sequence."""


def find_flux_layers(transformer: FluxTransformer2DModel) -> dict[int, tuple[str, FluxAttention]]:
    """Return the attention of every block under its number: double blocks first, then single ones."""
    groups = ("transformer_blocks", "single_transformer_blocks")
    names = [f"{group}.{place}.attn" for group in groups for place in range(len(getattr(transformer, group)))]
    modules = {number: (name, transformer.get_submodule(name)) for number, name in enumerate(names)}
    return {number: (name, attn) for number, (name, attn) in modules.items() if type(attn) is FluxAttention}


def list_flux_shapes(transformer: FluxTransformer2DModel, *, single: bool) -> dict[int, tuple[int, int]]:
    """Return (context_dim, inner_dim) of each double block, and of the single ones if asked for."""
    width = int(transformer.config["joint_attention_dim"])
    return {
        number: (width, attn.inner_dim)
        for number, (name, attn) in find_flux_layers(transformer).items()
        if single or not _is_single(name)
    }


class FluxHook(LayerTerms):
    """A forward hook on the attention of one block, which adds the image prompts of one adapter.

    Args:
        attn: the attention
        is_ungated: whether the block adds the term to its output, as XLabs does
    """

    def __init__(self, attn: FluxAttention, *, is_ungated: bool) -> None:
        super().__init__()
        self.is_ungated = is_ungated
        self.handle = attn.register_forward_hook(self, with_kwargs=True)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle a hook that does nothing instead: copies are not attached."""
        return _return_idle_hook, ()

    def __call__(
        self, attn: FluxAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """Return the attention's output with the image prompts; None, which changes nothing, without any.

        Raises:
            AmbiguousBatch: the image prompts are for another batch size or other positions
        """
        terms = self.find_running_state().terms
        if not terms:
            return None
        query = compute_query(attn, args[0] if args else kwargs["hidden_states"])
        image = merge_heads(add_image_attention(torch.zeros_like(query), query, terms))
        if not isinstance(output, tuple):  # a single block
            return output + image
        picture, text, *ungated = output
        if self.is_ungated:  # The block adds a third value to its output, as for diffusers' own IP-Adapter.
            return picture, text, sum(ungated, image)
        return picture + project_without_bias(attn.to_out[0], image), text, *ungated


def compute_query(
    attn: FluxAttention, hidden_states: Float[Tensor, "batch queries width"]
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Return the query after the base's norm and before rotation, with split heads."""
    return attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (-1, attn.head_dim))).transpose(1, 2)


class FluxLayers(DenoiserLayers):
    """The blocks of FLUX.1 in which an adapter acts.

    Args:
        transformer: the transformer
        owner: stands for the attachment
        shapes: the adapter's layers
        is_ungated: whether it is XLabs' kind

    Raises:
        AttachmentError: diffusers' own IP-Adapter is loaded there
        AdapterMismatch: the adapter's layers are not this transformer's
    """

    def __init__(
        self, transformer: FluxTransformer2DModel, owner: object, shapes: Shapes, *, is_ungated: bool
    ) -> None:
        check_fit(shapes, list_flux_shapes(transformer, single=not is_ungated))
        layers = {number: one for number, one in find_flux_layers(transformer).items() if number in shapes}
        _check_processors(layers.values())
        self.names = {number: name for number, (name, _) in layers.items()}
        self.modules = {number: attn for number, (_, attn) in layers.items()}
        self.terms = {number: FluxHook(attn, is_ungated=is_ungated) for number, attn in self.modules.items()}
        for hook in self.terms.values():
            hook.add_owner(owner)
        self.transformer = transformer
        watch_contexts(transformer, owner)
        self._read: tuple[weakref.ref[Tensor], Geometry] | None = None

    def heads(self, layer: int) -> int:
        """Return the number of attention heads of a layer."""
        return self.modules[layer].inner_dim // self.modules[layer].head_dim

    def read_geometry(self, call: DenoiserCall) -> Geometry:
        """Return the number of the text's rows, and the sizes of the pictures in the sequence.

        Raises:
            AmbiguousBatch: the rows of a picture are no grid
        """
        ids = call.options["img_ids"]
        if self._read is None or self._read[0]() is not ids:  # Reading waits for the device.
            self._read = weakref.ref(ids), (call.text.shape[1], read_picture_sizes(ids))
        return self._read[1]

    def grid(self, layer: int, geometry: Any) -> QueryGrid:
        """Return the queries of a layer: those of the pictures, and in a single block of the text."""
        text, pictures = geometry
        return QueryGrid(pictures, text if _is_single(self.names[layer]) else 0)

    def list_owners(self) -> list[object]:
        """Return the owners of all adapters that act in these layers."""
        hooks = (hook for attn in self.modules.values() for hook in attn._forward_hooks.values())
        return [owner for hook in hooks if isinstance(hook, FluxHook) for owner in hook.owners]

    def remove(self, owner: object) -> None:
        """Remove the hooks."""
        for hook in self.terms.values():
            hook.remove_owner(owner)
            hook.handle.remove()
        unwatch_contexts(self.transformer, owner)

    def check_in_place(self) -> None:
        """Make sure that diffusers' own IP-Adapter has not been loaded since.

        Raises:
            AttachmentError: it has
        """
        _check_processors((self.names[number], attn) for number, attn in self.modules.items())


def read_picture_sizes(ids: Tensor) -> tuple[tuple[int, int], ...]:
    """Return height and width of each picture in a sequence of positions, "places 3": picture, row, column.

    FLUX.1 Kontext has the picture to edit behind the latents (pipeline_flux_kontext.py).

    Raises:
        AmbiguousBatch: the places of a picture are no full grid, row by row
    """
    places = (ids[0] if ids.ndim == 3 else ids).tolist()
    sizes: list[tuple[int, int]] = []
    for _, group in groupby(places, key=lambda place: place[0]):
        grid = [(row, column) for _, row, column in group]
        rows, columns = (list(dict.fromkeys(axis)) for axis in zip(*grid, strict=True))
        if grid != [(row, column) for row in rows for column in columns]:
            raise AmbiguousBatch("a mask needs latents in full rows; this pipeline's img_ids are no grid")
        sizes.append((len(rows), len(columns)))
    return tuple(sizes)


def _check_processors(layers: Collection[tuple[str, FluxAttention]] | Any) -> None:
    for name, attn in layers:
        if type(attn.processor).__name__.startswith("FluxIPAdapter"):
            raise AttachmentError(
                f"diffusers' own IP-Adapter is loaded on this transformer ({name} has the attention "
                f"processor {type(attn.processor).__name__}); call pipe.unload_ip_adapter() first"
            )


def _is_single(name: str) -> bool:
    return name.startswith("single_transformer_blocks.")


def _return_idle_hook() -> Any:
    return _change_nothing


def _change_nothing(module: nn.Module, args: object, kwargs: object, output: object) -> None:
    """Stand for an adapter's hook in a copy of a transformer."""
