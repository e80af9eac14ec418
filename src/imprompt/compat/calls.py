"""`load_ip_adapter`, `set_ip_adapter_scale` and `unload_ip_adapter` of every pipeline.

diffusers defines them in a mixin for U-Nets, one for FLUX.1 and one for Stable Diffusion 3. As long as a
denoiser is enabled, these definitions ask the pipeline's denoiser first who answers. So a pipeline that is
made later takes them as well.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from diffusers.loaders.ip_adapter import FluxIPAdapterMixin, IPAdapterMixin, SD3IPAdapterMixin

from imprompt.attention.diffusers_internals import (
    get_pipeline_denoiser,
    receive_ip_adapters,
    unwrap_compiled,
)
from imprompt.attention.ip_adapter_calls import find_provider
from imprompt.compat.adapters import DenoiserAdapters
from imprompt.compat.transformers import JointAdapters

_COMPONENTS = ("image_encoder", "feature_extractor")
"""The parts of a pipeline that `load_ip_adapter` adds where they are missing."""

Method = Callable[..., Any]

MIXINS = (IPAdapterMixin, FluxIPAdapterMixin, SD3IPAdapterMixin)
"""The classes of diffusers in which the calls are defined."""

_ACTIVE = "is_ip_adapter_active"
"""The property by which pipelines for Stable Diffusion 3 ask whether there is an adapter."""

_originals: dict[tuple[type, str], Any] = {}
"""diffusers' own definitions, while they are replaced."""

_active = weakref.WeakSet[DenoiserAdapters]()

_added: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
"""Pipeline → the parts that loading has added to it."""


def find_adapters(pipe: object) -> DenoiserAdapters | None:
    """Return the adapters of a pipeline's denoiser; None if `imprompt.compat` is not enabled there."""
    denoiser = get_pipeline_denoiser(pipe)
    provider = None if denoiser is None else find_provider(unwrap_compiled(denoiser))
    return provider if isinstance(provider, DenoiserAdapters) else None


def start_answering(adapters: DenoiserAdapters) -> None:
    """Answer diffusers' calls for these adapters."""
    _active.add(adapters)
    if _originals:
        return
    for mixin in MIXINS:
        for name, answer in _ANSWERS.items():
            _originals[mixin, name] = original = vars(mixin)[name]
            setattr(mixin, name, _replace(original, answer))
    _originals[SD3IPAdapterMixin, _ACTIVE] = original = vars(SD3IPAdapterMixin)[_ACTIVE]
    setattr(SD3IPAdapterMixin, _ACTIVE, _replace_property(original))


def stop_answering(adapters: DenoiserAdapters) -> None:
    """Unload these adapters, and restore diffusers' definitions once nobody needs others."""
    _unload_all(adapters)
    adapters.close()
    _active.discard(adapters)
    if not _active:
        for (mixin, name), original in _originals.items():
            setattr(mixin, name, original)
        _originals.clear()


def _replace_property(original: property) -> property:
    def is_active(pipe: Any) -> bool:
        adapters = find_adapters(pipe)
        return adapters.is_active if isinstance(adapters, JointAdapters) else original.__get__(pipe)

    return property(is_active, doc=original.__doc__)


def _replace(original: Method, answer: Method) -> Method:
    @functools.wraps(original)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> None:
        adapters = find_adapters(pipe)
        if adapters is None:
            original(pipe, *args, **kwargs)
        else:
            answer(adapters, pipe, original, *args, **kwargs)

    return call


def _load(adapters: DenoiserAdapters, pipe: Any, original: Method, *args: Any, **kwargs: Any) -> None:
    """Let diffusers find the files, the image encoder and its preprocessing, but load none of the weights."""
    missing = {name for name in _COMPONENTS if getattr(pipe, name, 0) is None}
    try:
        with receive_ip_adapters(adapters.denoiser, adapters.load):
            original(pipe, *args, **kwargs)
    finally:
        added = {name for name in missing if getattr(pipe, name) is not None}
        _added[pipe] = _added.get(pipe, set()) | added


def _set_scale(adapters: DenoiserAdapters, pipe: Any, original: Method, scale: object) -> None:
    adapters.set_scale(scale)


def _unload(adapters: DenoiserAdapters, pipe: Any, original: Method) -> None:
    _unload_all(adapters)


def _unload_all(adapters: DenoiserAdapters) -> None:
    """Unload, and remove from the pipelines with this U-Net the parts that loading has added."""
    adapters.unload()
    for pipe in [pipe for pipe in _added if find_adapters(pipe) is adapters]:
        pipe.register_modules(**dict.fromkeys(_added.pop(pipe)))


_ANSWERS: dict[str, Method] = {
    "load_ip_adapter": _load,
    "set_ip_adapter_scale": _set_scale,
    "unload_ip_adapter": _unload,
}
