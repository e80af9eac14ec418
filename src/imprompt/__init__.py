"""Image prompts for diffusion models: IP-Adapter on any diffusers pipeline, and a small model to try it on.

    pipe = imprompt.mini.pipeline()
    adapter = imprompt.load_adapter("mini")
    with adapter.attach(pipe), adapter.use(imprompt.Reference("cat.png", scale=0.7)):
        picture = pipe("wearing a hat", num_inference_steps=25).images[0]

Names are imported when they are first used: `import imprompt` alone is quick and does not load torch.
"""
# ruff: noqa: I001

import importlib.metadata
import operator
import sys
import warnings
from typing import TYPE_CHECKING, Any

from imprompt.runtime.lazy_names import import_lazy_name, read_lazy_names

if TYPE_CHECKING:
    # Adapter
    from imprompt.checkpoint import load_adapter as load_adapter
    from imprompt.checkpoint import save_adapter as save_adapter
    from imprompt.checkpoint import convert_adapter as convert_adapter
    from imprompt.checkpoint import describe as describe
    from imprompt.checkpoint import Description as Description
    from imprompt.adapter.module import ImagePromptAdapter as ImagePromptAdapter

    # References
    from imprompt.reference import Reference as Reference
    from imprompt.attention.layer_weights import plot_layers as plot_layers
    from imprompt.inputs.image import load_image as load_image
    from imprompt.inputs.crop import noise_image as noise_image
    from imprompt.inputs.embeddings import ImageEmbeddings as ImageEmbeddings
    from imprompt.inputs.embeddings import load_embeddings as load_embeddings
    from imprompt.inputs.faces import InsightFaceEmbedder as InsightFaceEmbedder
    from imprompt.inputs.faces import Face as Face

    # Jobs
    from imprompt.generation.generate import generate as generate
    from imprompt.generation.generate import generate_each as generate_each
    from imprompt.generation.settings import Settings as Settings
    from imprompt.generation.job import Job as Job
    from imprompt.generation.job import save_job as save_job
    from imprompt.generation.run import run_job as run_job
    from imprompt.runtime.picture_files import save_picture as save_picture

    # Models
    from imprompt.generation.models import load_pipeline as load_pipeline
    from imprompt.backends.acceleration import accelerate as accelerate
    from imprompt.backends.acceleration import Acceleration as Acceleration
    from imprompt.inputs.encoder import load_image_encoder as load_image_encoder
    from imprompt.inputs.encoder import ImageEncoder as ImageEncoder
    from imprompt import mini as mini
    from imprompt import compat as compat

    # Errors
    from imprompt.errors import ImpromptError as ImpromptError
    from imprompt.errors import AdapterMismatch as AdapterMismatch
    from imprompt.errors import AmbiguousBatch as AmbiguousBatch
    from imprompt.errors import AttachmentError as AttachmentError
    from imprompt.errors import CheckpointError as CheckpointError
    from imprompt.errors import ConfigError as ConfigError
    from imprompt.errors import DataError as DataError
    from imprompt.errors import ImageError as ImageError
    from imprompt.errors import InvalidReference as InvalidReference
    from imprompt.errors import MissingExtra as MissingExtra
    from imprompt.errors import OutputError as OutputError
    from imprompt.errors import TrainingError as TrainingError
    from imprompt.errors import UnknownModel as UnknownModel


_MODULES = read_lazy_names(__file__)
_DEPRECATED = {"load_base": "load_pipeline", "load_job": "Job.from_toml", "read_job": "Job.from_image"}

__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = importlib.metadata.version("imprompt")


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        message = f"imprompt.{name} is deprecated; use imprompt.{_DEPRECATED[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        value = operator.attrgetter(_DEPRECATED[name])(sys.modules[__name__])
    else:
        value = import_lazy_name(__name__, _MODULES, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
