"""Image prompts for diffusion models: IP-Adapter on any diffusers pipeline, and a small model to try it on.

    pipe = imprompt.mini.pipeline()
    adapter = imprompt.load_adapter("mini")
    with adapter.attach(pipe), adapter.references(imprompt.Reference("cat.png", scale=0.7)):
        picture = pipe("wearing a hat", num_inference_steps=25).images[0]

Names are imported when they are first used: `import imprompt` alone is quick and does not load torch.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imprompt import mini
    from imprompt.adapter import ImagePromptAdapter
    from imprompt.checkpoint import Description, describe, load_adapter, save_adapter
    from imprompt.encoder import ImageEncoder, load_image_encoder
    from imprompt.errors import (
        AdapterMismatch,
        AmbiguousBatch,
        AttachmentError,
        CheckpointError,
        ConfigError,
        ImageError,
        ImpromptError,
        InvalidReference,
        MissingExtra,
        OutputError,
        UnknownModel,
    )
    from imprompt.generation import generate, load_base, save_picture
    from imprompt.image import load_image
    from imprompt.reference import Reference

__all__ = [
    "AdapterMismatch",
    "AmbiguousBatch",
    "AttachmentError",
    "CheckpointError",
    "ConfigError",
    "Description",
    "ImageEncoder",
    "ImageError",
    "ImagePromptAdapter",
    "ImpromptError",
    "InvalidReference",
    "MissingExtra",
    "OutputError",
    "Reference",
    "UnknownModel",
    "describe",
    "generate",
    "load_adapter",
    "load_base",
    "load_image",
    "load_image_encoder",
    "mini",
    "save_adapter",
    "save_picture",
]

__version__ = importlib.metadata.version("imprompt")

_HOMES = {
    "ImagePromptAdapter": "adapter",
    "Description": "checkpoint",
    "describe": "checkpoint",
    "load_adapter": "checkpoint",
    "save_adapter": "checkpoint",
    "ImageEncoder": "encoder",
    "load_image_encoder": "encoder",
    "generate": "generation",
    "load_base": "generation",
    "save_picture": "generation",
    "load_image": "image",
    "Reference": "reference",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'imprompt' has no attribute {name!r}")
    if name == "mini":
        return importlib.import_module("imprompt.mini")
    value = getattr(importlib.import_module(f"imprompt.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
