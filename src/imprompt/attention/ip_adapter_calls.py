"""The calls of diffusers' own IP-Adapter on a denoiser with an attached adapter: refused, or answered.

A pipeline finds the projections of diffusers' IP-Adapter in its denoiser's `encoder_hid_proj`. While an
adapter is attached, an `ImageProjections` stands in that place, so that every pipeline that shares the
denoiser gets a sentence there. Methods that do not look there are replaced on the pipeline itself. Once
`imprompt.compat` provides the projections, nothing is refused.
"""

import abc
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from imprompt.attention.diffusers_internals import get_pipeline_denoiser, unwrap_compiled
from imprompt.errors import AttachmentError

PLACE = "encoder_hid_proj"
"""The attribute where diffusers keeps the projections of its IP-Adapter, and Kolors that of its text."""

NOTHING = object()
"""Stands for the missing `encoder_hid_proj` of a transformer."""

TAKES_NO_PICTURE = (
    "it takes no ip_adapter_image and no ip_adapter_image_embeds; use adapter.use(picture), or "
    "imprompt.compat.enable(pipe) and then pipe.load_ip_adapter(...)"
)
"""The advice where a pipeline with an attached adapter gets an image prompt for diffusers' own IP-Adapter."""

_REFUSED = {
    "load_ip_adapter": (
        "load_ip_adapter would replace it; use imprompt.load_adapter(...), or call "
        "imprompt.compat.enable(pipe) first"
    ),
    "set_ip_adapter_scale": (
        "set_ip_adapter_scale has no effect on it; use adapter.use(imprompt.Reference(picture, scale=...)), "
        "or imprompt.compat.enable(pipe) and then pipe.load_ip_adapter(...)"
    ),
    "unload_ip_adapter": (
        "unload_ip_adapter does not remove it; use adapter.detach(), or imprompt.compat.enable(pipe) and "
        "then pipe.load_ip_adapter(...)"
    ),
    "prepare_ip_adapter_image_embeds": TAKES_NO_PICTURE,
}


class Provider(abc.ABC):
    """Answers the calls of diffusers' own IP-Adapter on a denoiser."""

    @property
    @abc.abstractmethod
    def image_projection_layers(self) -> Sequence[nn.Module]:
        """The projections of the adapters that these calls have loaded."""


class ImageProjections:
    """Stands in for a denoiser's `encoder_hid_proj`; a plain object, which no `state_dict` contains.

    Args:
        original: what was there: None, the text projection of Kolors, or `NOTHING` in a transformer

    Attributes:
        owners: the owners of attached adapters, because of which the calls are refused
        provider: answers the calls instead
    """

    def __init__(self, original: Any) -> None:
        self.original = original
        self.owners: list[object] = []
        self.provider: Provider | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Project the text on bases that have such a projection; on others leave everything as it is."""
        return args if self.original is NOTHING else self.original(*args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle the original instead: copies of a denoiser are not attached."""
        return _return_original, (None if self.original is NOTHING else self.original,)

    @property
    def num_ip_adapters(self) -> int:
        """The number of adapters that diffusers' calls have loaded, which pipelines of FLUX.1 ask for.

        Raises:
            AttachmentError: the calls are refused
        """
        return len(self.image_projection_layers)

    @property
    def image_projection_layers(self) -> Sequence[nn.Module]:
        """The projections of the adapters that diffusers' calls have loaded.

        Raises:
            AttachmentError: the calls are refused
        """
        if self.provider is None:
            raise AttachmentError(f"an adapter of imprompt is attached to this base: {TAKES_NO_PICTURE}")
        return self.provider.image_projection_layers


def _return_original(original: Any) -> Any:
    return original


def find_projections(denoiser: nn.Module) -> ImageProjections | None:
    """Return what stands in for a denoiser's `encoder_hid_proj`, if anything does."""
    projections = vars(denoiser).get(PLACE)
    return projections if isinstance(projections, ImageProjections) else None


def find_provider(denoiser: nn.Module) -> Provider | None:
    """Return what answers the calls of diffusers' own IP-Adapter on a denoiser, if anything does."""
    projections = find_projections(denoiser)
    return projections and projections.provider


def install_projections(denoiser: nn.Module) -> ImageProjections:
    """Put a stand-in into a denoiser, or return the one that is there."""
    projections = find_projections(denoiser)
    if projections is None:
        projections = ImageProjections(getattr(denoiser, PLACE, NOTHING))
        vars(denoiser)[PLACE] = projections
    return projections


def remove_unused_projections(denoiser: nn.Module) -> None:
    """Undo `install_projections`, if neither an owner nor a provider needs the stand-in."""
    projections = find_projections(denoiser)
    if projections is None or projections.owners or projections.provider is not None:
        return
    del vars(denoiser)[PLACE]  # A module is registered elsewhere, and appears again.
    if projections.original is None:
        vars(denoiser)[PLACE] = None


class Refusal:
    """A replacement for a method of diffusers' own IP-Adapter that raises while an adapter is attached.

    Args:
        pipeline: whose method it is
        name: the name of the method
    """

    def __init__(self, pipeline: object, name: str) -> None:
        self.pipeline, self.name = weakref.ref(pipeline), name
        self.owners: list[object] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse the call, unless `imprompt.compat` answers it."""
        pipeline: Any = self.pipeline()
        denoiser = get_pipeline_denoiser(pipeline)
        if denoiser is not None and find_provider(unwrap_compiled(denoiser)) is not None:
            return getattr(type(pipeline), self.name)(pipeline, *args, **kwargs)
        raise AttachmentError(f"an adapter of imprompt is attached to this pipeline: {_REFUSED[self.name]}")


def block_ip_adapter_calls(denoiser: nn.Module, owner: object) -> None:
    """Refuse the image prompts of diffusers' own IP-Adapter in every pipeline that has this denoiser."""
    install_projections(denoiser).owners.append(owner)


def unblock_ip_adapter_calls(denoiser: nn.Module, owner: object) -> None:
    """Undo `block_ip_adapter_calls`, once no other owner needs it."""
    projections = find_projections(denoiser)
    if projections is not None and owner in projections.owners:
        projections.owners.remove(owner)
        remove_unused_projections(denoiser)


def block_ip_adapter_methods(target: object, owner: object) -> None:
    """Make the methods of diffusers' own IP-Adapter raise, where they would have no effect or fail."""
    for name in _REFUSED:
        if not isinstance(target, nn.Module) and hasattr(type(target), name):
            refusal = vars(target).setdefault(name, Refusal(target, name))
            if isinstance(refusal, Refusal):
                refusal.owners.append(owner)


def unblock_ip_adapter_methods(target: object, owner: object) -> None:
    """Undo `block_ip_adapter_methods`, once no other owner needs it."""
    for name in _REFUSED:
        refusal = None if isinstance(target, nn.Module) else getattr(target, "__dict__", {}).get(name)
        if isinstance(refusal, Refusal) and owner in refusal.owners:
            refusal.owners.remove(owner)
            if not refusal.owners:
                del vars(target)[name]
