"""FLUX.1 Redux's place in a denoiser: image tokens behind those of the text, as if they were words.

    text ← [text; λ c_i]

They have the text's position 0, as its own tokens do. λ multiplies the tokens, which is crude: attention is
not linear in its keys. λ = 0 leaves them out (black-forest-labs/flux, src/flux/sampling.py `prepare_redux`;
diffusers, `FluxPriorReduxPipeline`).
"""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from imprompt.attention.cache_contexts import unwatch_contexts, watch_contexts
from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.denoiser_layers import DenoiserLayers, QueryGrid
from imprompt.attention.layers import Shapes, check_fit
from imprompt.attention.terms import LayerTerms
from imprompt.errors import AmbiguousBatch, InvalidReference


class TextHook(LayerTerms):
    """A hook that appends image tokens to the text with which a transformer is called.

    Args:
        transformer: the transformer
    """

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.handle = transformer.register_forward_pre_hook(self, with_kwargs=True)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle a hook that does nothing instead: copies are not attached."""
        return _return_idle_hook, ()

    def __call__(
        self, transformer: FluxTransformer2DModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments with the image tokens; None, which changes nothing, without any.

        Raises:
            AmbiguousBatch: the image prompts are for another batch size
        """
        terms = self.find_running_state().terms
        if not terms:
            return None
        text: Tensor = kwargs["encoder_hidden_states"]
        parts, ids = [text], [kwargs["txt_ids"]]
        for term in terms:
            tokens = term.value.transpose(1, 2).flatten(2).to(text)
            if len(tokens) != len(text):
                raise AmbiguousBatch(
                    f"the batch has {len(text)} samples, but the image prompts are for {len(tokens)}"
                )
            tokens = tokens if term.weight is None else tokens * term.weight[:, 0].to(text)
            parts.append(tokens)
            ids.append(ids[0].new_zeros(*ids[0].shape[:-2], tokens.shape[1], ids[0].shape[-1]))
        changed = {"encoder_hidden_states": torch.cat(parts, 1), "txt_ids": torch.cat(ids, -2)}
        return args, {**kwargs, **changed}


class TextTokens(DenoiserLayers):
    """The text of a FLUX transformer, as the only layer of an adapter.

    Args:
        transformer: the transformer
        owner: stands for the attachment
        shapes: the adapter's layers: one, as wide as the text embeddings

    Raises:
        AdapterMismatch: the text embeddings are of another width
    """

    def __init__(self, transformer: FluxTransformer2DModel, owner: object, shapes: Shapes) -> None:
        width = int(transformer.config["joint_attention_dim"])
        check_fit(shapes, {0: (width, width)})
        self.names, self.modules = {0: "transformer_blocks"}, {0: transformer}
        self.terms = {0: TextHook(transformer)}
        self.terms[0].add_owner(owner)
        watch_contexts(transformer, owner)

    def heads(self, layer: int) -> int:
        """Return 1: tokens are not split into heads."""
        return 1

    def read_geometry(self, call: DenoiserCall) -> None:
        """Refuse a mask.

        Raises:
            InvalidReference: always, as no token is at a place of the picture
        """
        raise InvalidReference("FLUX Redux's tokens are for the whole picture; leave out the mask")

    def grid(self, layer: int, geometry: Any) -> QueryGrid:
        """Return no queries."""
        return QueryGrid(())

    def list_owners(self) -> list[object]:
        """Return the owners of all adapters that act here."""
        hooks = self.modules[0]._forward_pre_hooks.values()
        return [owner for hook in hooks if isinstance(hook, TextHook) for owner in hook.owners]

    def remove(self, owner: object) -> None:
        """Remove the hook."""
        self.terms[0].remove_owner(owner)
        self.terms[0].handle.remove()
        unwatch_contexts(self.modules[0], owner)

    def check_in_place(self) -> None:
        """Do nothing, as nothing can take the hook's place."""


def _return_idle_hook() -> Any:
    return _change_nothing


def _change_nothing(module: object, args: object, kwargs: object) -> None:
    """Stand for an adapter's hook in a copy of a transformer."""
