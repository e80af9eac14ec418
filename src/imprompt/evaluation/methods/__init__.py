"""Methods make images for a benchmark: from a reference, a prompt, λ and seeds, one image for each seed."""

import difflib
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection

from imprompt.errors import ConfigError
from imprompt.evaluation.methods.adapters import AdapterMethod, load_adapter_encoder
from imprompt.evaluation.methods.baselines import BASELINES
from imprompt.evaluation.methods.method import Method, load_pretrained
from imprompt.evaluation.methods.table import IP_ADAPTER, METHODS, REFUSED, PublishedMethod
from imprompt.evaluation.settings import DrawingSettings, MethodSettings

__all__ = ["METHODS", "Method", "PublishedMethod", "check_method", "load_conditioning_encoder", "load_method"]


def check_method(
    method: MethodSettings, drawing: DrawingSettings, *, scales: bool, text: bool
) -> PublishedMethod:
    """Refuse what a method cannot honor, before anything is loaded.

    Args:
        method: names the method and its models
        drawing: says how it makes images
        scales: whether the suite uses another λ than 1
        text: whether the suite has prompts

    Raises:
        ConfigError: the method is unknown or cannot run in diffusers, or a setting has no effect on it
    """
    published, is_adapter = _find_method(method.name), method.name == IP_ADAPTER
    faults = [
        (is_adapter and not method.adapter, "method.adapter is missing: a file, a short name, or a hub id"),
        (is_adapter and bool(method.second), "method.second has no effect"),
        (not is_adapter and bool(method.adapter), "method.adapter has no effect"),
        (not is_adapter and method.image_encoder != "known", "method.image_encoder has no effect"),
        (not is_adapter and bool(method.second) and not published.second, "method.second has no effect"),
        (not is_adapter and scales, "it has no λ: ask for 1 alone"),
        (not published.takes_text and text, "it takes no text, and this suite has prompts"),
        (not published.takes_text and bool(drawing.negative_prompt), "drawing.negative_prompt has no effect"),
        (not published.takes_size and drawing.size > 0, "drawing.size has no effect; its size is its own"),
    ]
    for impossible, why in faults:
        if impossible:
            raise ConfigError(f"method {method.name}: {why}")
    return published


def _find_method(name: str) -> PublishedMethod:
    if name in REFUSED:
        raise ConfigError(f"method {name}: diffusers 0.42 cannot run it: {REFUSED[name]}")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        perhaps = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no method {name!r}{perhaps}; the methods are: {', '.join(METHODS)}")
    return METHODS[name]


def load_method(method: MethodSettings, drawing: DrawingSettings, device: torch.device | str) -> Method:
    """Load a method and its models.

    Raises:
        UnknownModel, CheckpointError, AdapterMismatch: its models cannot be found, or do not fit each other
    """
    kind: Any = AdapterMethod if method.name == IP_ADAPTER else BASELINES[method.name]
    return kind(method, drawing, torch.device(device))


def load_conditioning_encoder(method: MethodSettings) -> CLIPVisionModelWithProjection | None:
    """Load the image encoder that conditions a method, on the CPU; return None if it has none."""
    if method.name == IP_ADAPTER:
        return load_adapter_encoder(method)
    source = BASELINES[method.name].find_encoder_source(method)
    if source is None:
        return None
    return load_pretrained(CLIPVisionModelWithProjection, source, subfolder="image_encoder")
