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
    from imprompt.checkpoint import Description, convert_adapter, describe, load_adapter, save_adapter
    from imprompt.crop import noise_image
    from imprompt.embeddings import ImageEmbeddings, load_embeddings
    from imprompt.encoder import ImageEncoder, load_image_encoder
    from imprompt.errors import (
        AdapterMismatch,
        AmbiguousBatch,
        AttachmentError,
        CheckpointError,
        ConfigError,
        DataError,
        ImageError,
        ImpromptError,
        InvalidReference,
        MissingExtra,
        OutputError,
        TrainingError,
        UnknownModel,
    )
    from imprompt.faces import Face, InsightFaceEmbedder
    from imprompt.generation import Settings, generate, generate_each, load_base
    from imprompt.generation.running import run_job
    from imprompt.image import load_image
    from imprompt.job import Job, load_job, read_job, save_job
    from imprompt.layer_weights import plot_layers
    from imprompt.output import save_picture
    from imprompt.reference import Reference

__all__ = [
    "AdapterMismatch",
    "AmbiguousBatch",
    "AttachmentError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Description",
    "Face",
    "ImageEmbeddings",
    "ImageEncoder",
    "ImageError",
    "ImagePromptAdapter",
    "ImpromptError",
    "InsightFaceEmbedder",
    "InvalidReference",
    "Job",
    "MissingExtra",
    "OutputError",
    "Reference",
    "Settings",
    "TrainingError",
    "UnknownModel",
    "convert_adapter",
    "describe",
    "generate",
    "generate_each",
    "load_adapter",
    "load_base",
    "load_embeddings",
    "load_image",
    "load_image_encoder",
    "load_job",
    "mini",
    "noise_image",
    "plot_layers",
    "read_job",
    "run_job",
    "save_adapter",
    "save_job",
    "save_picture",
]

__version__ = importlib.metadata.version("imprompt")

_HOMES = {
    "ImagePromptAdapter": "adapter",
    "Description": "checkpoint",
    "convert_adapter": "checkpoint",
    "describe": "checkpoint",
    "load_adapter": "checkpoint",
    "save_adapter": "checkpoint",
    "ImageEncoder": "encoder",
    "load_image_encoder": "encoder",
    "noise_image": "crop",
    "ImageEmbeddings": "embeddings",
    "load_embeddings": "embeddings",
    "Face": "faces",
    "InsightFaceEmbedder": "faces",
    "plot_layers": "layer_weights",
    "generate": "generation",
    "load_base": "generation",
    "Settings": "generation",
    "generate_each": "generation",
    "run_job": "generation.running",
    "load_image": "image",
    "Job": "job",
    "load_job": "job",
    "read_job": "job",
    "save_job": "job",
    "save_picture": "output",
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
