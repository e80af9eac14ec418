"""What differs between denoisers: where an adapter's layers are in it, and how a call of it is read."""

import abc
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.terms import LayerTerms
from imprompt.errors import AttachmentError


class QueryGrid(NamedTuple):
    """The queries of a layer: first `text` rows that show no place, then the places of each picture.

    Args:
        pictures: height and width of each picture's grid, whose rows follow one another
        text: the number of the text's rows
    """

    pictures: tuple[tuple[int, int], ...]
    text: int = 0


class DenoiserLayers(abc.ABC):
    """The layers of a denoiser in which an adapter acts, from attaching to detaching.

    Attributes:
        noun: what messages call such a denoiser
        names: layer number → name of the module in which image prompts act
        modules: layer number → module; with a LoRA also those in which it alone acts
        terms: layer number → the `LayerTerms` there
    """

    noun: str = "transformer"
    names: Mapping[int, str]
    modules: Mapping[int, Any]
    terms: Mapping[int, Any]

    @abc.abstractmethod
    def heads(self, layer: int) -> int:
        """Return the number of attention heads of a layer."""

    @abc.abstractmethod
    def read_geometry(self, call: DenoiserCall) -> Hashable:
        """Return everything about a call's latents on which the grids of the layers depend."""

    @abc.abstractmethod
    def grid(self, layer: int, geometry: Any) -> QueryGrid:
        """Return the queries of a layer for latents of this geometry."""

    @abc.abstractmethod
    def remove(self, owner: object) -> None:
        """Restore the denoiser bit for bit, except for what other adapters need."""

    @abc.abstractmethod
    def check_in_place(self) -> None:
        """Make sure that image prompts reach the layers.

        Raises:
            AttachmentError: a processor has been replaced since the adapter was attached
        """

    @abc.abstractmethod
    def list_owners(self) -> list[object]:
        """Return the owners of all adapters that act in these layers."""

    def list_layers_of(self, call: DenoiserCall) -> set[int]:
        """Return the layers that a call runs."""
        return set(self.modules)


class ProcessorLayers(DenoiserLayers):
    """Layers whose attention processor is replaced by one of imprompt's, which several adapters share.

    Args:
        layers: layer number → the name of its module, and the module
        kind: the class of the new processors, built from those that are there
        owner: stands for the attachment
    """

    def __init__(
        self, layers: Mapping[int, tuple[str, Any]], kind: Callable[[Any], LayerTerms], owner: object
    ) -> None:
        self.modules = {layer: attn for layer, (_, attn) in layers.items()}
        for attn in self.modules.values():
            if type(attn.processor) is not kind:
                attn.processor = kind(attn.processor)
            attn.processor.add_owner(owner)
        self.terms = {layer: attn.processor for layer, attn in self.modules.items()}

    def heads(self, layer: int) -> int:
        """Return the number of attention heads of a layer."""
        return self.modules[layer].heads

    def list_owners(self) -> list[object]:
        """Return the owners of all adapters that act in these layers."""
        return [owner for processor in self.terms.values() for owner in processor.owners]

    def remove(self, owner: object) -> None:
        """Restore the very processors that the layers had before, unless another adapter acts there."""
        for layer, processor in self.terms.items():
            attn = self.modules[layer]
            if processor.remove_owner(owner) and attn.processor is processor:
                attn.processor = processor.base

    def check_in_place(self) -> None:
        """Make sure that every layer still has the adapter's processor.

        Raises:
            AttachmentError: a layer has another one
        """
        for layer, processor in self.terms.items():
            if self.modules[layer].processor is not processor:
                kind = type(self.modules[layer].processor).__name__
                raise AttachmentError(
                    f"attention layer {layer} was given another processor ({kind}) after the "
                    "adapter; detach, then attach again; a pipeline that puts its own there on every call "
                    "cannot be used with an image prompt"
                )
