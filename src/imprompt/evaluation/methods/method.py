"""What all methods share: loading, the sampler, and a random generator for each image."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from imprompt.evaluation.methods.table import METHODS
from imprompt.evaluation.settings import DrawingSettings, MethodSettings
from imprompt.generation.pipeline_call import make_generators, remove_safety_checker
from imprompt.runtime.foreign_models import explain_failure

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Method(ABC):
    """Something that makes images from a reference.

    Args:
        method: names the models
        drawing: says how images are made
        device: the device of the models
    """

    def __init__(self, method: MethodSettings, drawing: DrawingSettings, device: torch.device) -> None:
        self.method, self.drawing, self.device = method, drawing, device
        self.published = METHODS[method.name]
        self.dtype = torch.float32 if device.type == "cpu" else _TYPES[drawing.precision]
        self.pipe = self._prepare(self.load_pipeline())

    @property
    def model(self) -> str:
        """The folder or hub id of the pipeline."""
        return self.method.model or self.published.model

    @abstractmethod
    def load_pipeline(self) -> Any:
        """Load the pipeline as it is published."""

    @abstractmethod
    def draw(
        self, reference: Image.Image, text: str, scale: float | int, seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Make one image for each seed, in one call.

        Args:
            reference: an upright RGB picture
            text: the prompt
            scale: λ; 1 for a method without λ
            seeds: of the images' noise, which is drawn on the CPU, so that a seed is the same noise on every
                device
        """

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every network that the images depend on, with its name."""
        for name, part in self.pipe.components.items():
            if isinstance(part, nn.Module):
                yield name, part

    def fingerprint(self) -> str:
        """Return a SHA-256 of names, shapes and a few values of all weights, which identifies the models."""
        digest = hashlib.sha256()
        for name, module in self.modules():
            for inner, tensor in module.state_dict().items():
                digest.update(f"{name}.{inner} {tuple(tensor.shape)}".encode())
                digest.update(_sample_values(tensor))
        return digest.hexdigest()

    def build_pipeline_arguments(self, text: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of a diffusers pipeline: steps, guidance, generators, prompts, size."""
        drawing, count = self.drawing, len(seeds)
        arguments: dict[str, Any] = {
            "num_inference_steps": drawing.steps,
            "guidance_scale": drawing.guidance_scale,
            "generator": make_generators(seeds),
        }
        if self.published.takes_text:
            arguments |= {"prompt": [text] * count, "negative_prompt": [drawing.negative_prompt] * count}
        if drawing.size:
            arguments |= {"height": drawing.size, "width": drawing.size}
        return arguments

    def _prepare(self, pipe: Any) -> Any:
        """Move a pipeline to the device, with the requested sampler, without progress bar and safety checker.

        The safety checker replaces a picture by a black one, which would be scored as the method's answer.
        """
        remove_safety_checker(pipe)
        if self.drawing.sampler == "ddim" and hasattr(pipe, "scheduler"):
            pipe.scheduler = replace_by_ddim(pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)


def replace_by_ddim(scheduler: Any) -> Any:
    """Return DDIM with the same noise schedule; a DDIM scheduler is returned as it is."""
    return scheduler if isinstance(scheduler, DDIMScheduler) else DDIMScheduler.from_config(scheduler.config)


def load_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Load a model or pipeline of diffusers or transformers.

    Raises:
        UnknownModel: it is not here and cannot be fetched, or it is of another kind
    """
    with explain_failure(f"{kind.__name__} {name} cannot be loaded"):
        return kind.from_pretrained(name, **options)


def _sample_values(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    few = torch.cat([flat[:4], flat[-4:]]).to("cpu", torch.float64)
    return few.numpy().tobytes()
