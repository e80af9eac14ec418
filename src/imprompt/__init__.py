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
    from imprompt.adapter.module import ImagePromptAdapter
    from imprompt.attention.layer_weights import plot_layers
    from imprompt.checkpoint import Description, convert_adapter, describe, load_adapter, save_adapter
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
    from imprompt.generation.generate import generate, generate_each
    from imprompt.generation.job import Job, load_job, read_job, save_job
    from imprompt.generation.models import load_pipeline
    from imprompt.generation.run import run_job
    from imprompt.generation.settings import Settings
    from imprompt.inputs.crop import noise_image
    from imprompt.inputs.embeddings import ImageEmbeddings, load_embeddings
    from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
    from imprompt.inputs.faces import Face, InsightFaceEmbedder
    from imprompt.inputs.image import load_image
    from imprompt.reference import Reference
    from imprompt.runtime.output import save_picture

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
    "load_embeddings",
    "load_image",
    "load_image_encoder",
    "load_job",
    "load_pipeline",
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
    "ImagePromptAdapter": "adapter.module",
    "Description": "checkpoint",
    "convert_adapter": "checkpoint",
    "describe": "checkpoint",
    "load_adapter": "checkpoint",
    "save_adapter": "checkpoint",
    "ImageEncoder": "inputs.encoder",
    "load_image_encoder": "inputs.encoder",
    "noise_image": "inputs.crop",
    "ImageEmbeddings": "inputs.embeddings",
    "load_embeddings": "inputs.embeddings",
    "Face": "inputs.faces",
    "InsightFaceEmbedder": "inputs.faces",
    "plot_layers": "attention.layer_weights",
    "generate": "generation.generate",
    "load_pipeline": "generation.models",
    "Settings": "generation.settings",
    "generate_each": "generation.generate",
    "run_job": "generation.run",
    "load_image": "inputs.image",
    "Job": "generation.job",
    "load_job": "generation.job",
    "read_job": "generation.job",
    "save_job": "generation.job",
    "save_picture": "runtime.output",
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
