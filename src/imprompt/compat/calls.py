"""`load_ip_adapter`, `set_ip_adapter_scale` and `unload_ip_adapter` of every pipeline.

diffusers defines them once, in `IPAdapterMixin`. As long as a U-Net is enabled, these definitions ask the
pipeline's U-Net first who answers. So a pipeline that is made later takes them as well.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from diffusers.loaders.ip_adapter import IPAdapterMixin

from imprompt.attention.diffusers_internals import receive_ip_adapters, unwrap_compiled
from imprompt.attention.ip_adapter_calls import find_provider
from imprompt.compat.adapters import UNetAdapters

_COMPONENTS = ("image_encoder", "feature_extractor")
"""The parts of a pipeline that `load_ip_adapter` adds where they are missing."""

Method = Callable[..., Any]

_originals: dict[str, Method] = {}
"""diffusers' own definitions, while they are replaced."""

_active = weakref.WeakSet[UNetAdapters]()

_added: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
"""Pipeline → the parts that loading has added to it."""


def find_adapters(pipe: object) -> UNetAdapters | None:
    """Return the adapters of a pipeline's U-Net; None if `imprompt.compat` is not enabled there."""
    unet = getattr(pipe, "unet", None)
    provider = None if unet is None else find_provider(unwrap_compiled(unet))
    return provider if isinstance(provider, UNetAdapters) else None


def start_answering(adapters: UNetAdapters) -> None:
    """Answer diffusers' calls for these adapters."""
    _active.add(adapters)
    for name, answer in _ANSWERS.items():
        if name not in _originals:
            _originals[name] = getattr(IPAdapterMixin, name)
            setattr(IPAdapterMixin, name, _replace(_originals[name], answer))


def stop_answering(adapters: UNetAdapters) -> None:
    """Unload these adapters, and restore diffusers' definitions once nobody needs others."""
    _unload_all(adapters)
    adapters.close()
    _active.discard(adapters)
    if not _active:
        for name, original in _originals.items():
            setattr(IPAdapterMixin, name, original)
        _originals.clear()


def _replace(original: Method, answer: Method) -> Method:
    @functools.wraps(original)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> None:
        adapters = find_adapters(pipe)
        if adapters is None:
            original(pipe, *args, **kwargs)
        else:
            answer(adapters, pipe, original, *args, **kwargs)

    return call


def _load(adapters: UNetAdapters, pipe: Any, original: Method, *args: Any, **kwargs: Any) -> None:
    """Let diffusers find the files, the image encoder and its preprocessing, but load none of the weights."""
    missing = {name for name in _COMPONENTS if getattr(pipe, name, 0) is None}
    try:
        with receive_ip_adapters(adapters.unet, adapters.load):
            original(pipe, *args, **kwargs)
    finally:
        added = {name for name in missing if getattr(pipe, name) is not None}
        _added[pipe] = _added.get(pipe, set()) | added


def _set_scale(adapters: UNetAdapters, pipe: Any, original: Method, scale: object) -> None:
    adapters.set_scale(scale)


def _unload(adapters: UNetAdapters, pipe: Any, original: Method) -> None:
    _unload_all(adapters)


def _unload_all(adapters: UNetAdapters) -> None:
    """Unload, and remove from the pipelines with this U-Net the parts that loading has added."""
    adapters.unload()
    for pipe in [pipe for pipe in _added if find_adapters(pipe) is adapters]:
        pipe.register_modules(**dict.fromkeys(_added.pop(pipe)))


_ANSWERS: dict[str, Method] = {
    "load_ip_adapter": _load,
    "set_ip_adapter_scale": _set_scale,
    "unload_ip_adapter": _unload,
}
