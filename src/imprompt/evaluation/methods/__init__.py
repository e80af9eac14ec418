"""Methods: a reference, a text, λ and seeds in; pictures out, one for each seed."""

import difflib
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection

from imprompt.errors import ConfigError
from imprompt.evaluation.methods.adapters import AdapterMethod, adapter_encoder
from imprompt.evaluation.methods.baselines import BASELINES
from imprompt.evaluation.methods.method import Method, loaded
from imprompt.evaluation.methods.table import IP_ADAPTER, METHODS, REFUSED, Published
from imprompt.evaluation.suites.settings import DrawingSettings, MethodSettings

__all__ = ["METHODS", "Method", "Published", "check_method", "image_encoder_of", "load_method"]


def check_method(method: MethodSettings, drawing: DrawingSettings, *, scales: bool, text: bool) -> Published:
    """Refuse, before anything is loaded, what a method cannot honour.

    Args:
        method: which one
        drawing: how
        scales: whether other λ than 1 are asked for
        text: whether there are prompts

    Raises:
        ConfigError: an unknown method, one that diffusers cannot run, or a setting without effect on it
    """
    known, is_adapter = _known(method.name), method.name == IP_ADAPTER
    faults = [
        (is_adapter and not method.adapter, "method.adapter is missing: a file, a short name, or a hub id"),
        (is_adapter and bool(method.second), "method.second has no effect"),
        (not is_adapter and bool(method.adapter), "method.adapter has no effect"),
        (not is_adapter and method.image_encoder != "known", "method.image_encoder has no effect"),
        (not is_adapter and bool(method.second) and not known.second, "method.second has no effect"),
        (not is_adapter and scales, "it has no λ: ask for 1 alone"),
        (not known.takes_text and text, "it takes no text, and this suite has prompts"),
        (not known.takes_text and bool(drawing.negative_prompt), "drawing.negative_prompt has no effect"),
        (not known.takes_size and drawing.size > 0, "drawing.size has no effect; its size is its own"),
    ]
    for impossible, why in faults:
        if impossible:
            raise ConfigError(f"method {method.name}: {why}")
    return known


def _known(name: str) -> Published:
    if name in REFUSED:
        raise ConfigError(f"method {name}: diffusers 0.42 cannot run it: {REFUSED[name]}")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        perhaps = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no method {name!r}{perhaps}; the methods are: {', '.join(METHODS)}")
    return METHODS[name]


def load_method(method: MethodSettings, drawing: DrawingSettings, device: torch.device | str) -> Method:
    """Load what draws.

    Raises:
        UnknownModel, CheckpointError, AdapterMismatch: its models are not there, or do not go together
    """
    kind: Any = AdapterMethod if method.name == IP_ADAPTER else BASELINES[method.name]
    return kind(method, drawing, torch.device(device))


def image_encoder_of(method: MethodSettings) -> CLIPVisionModelWithProjection | None:
    """The image encoder that conditions a method, alone, on the CPU; None if it has none (ControlNet)."""
    if method.name == IP_ADAPTER:
        return adapter_encoder(method)
    home = BASELINES[method.name].encoder_home(method)
    if home is None:
        return None
    return loaded(CLIPVisionModelWithProjection, home, subfolder="image_encoder")
