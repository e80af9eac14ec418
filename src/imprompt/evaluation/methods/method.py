"""What all methods share: loading, the sampler, one generator for each picture."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Generator, Tensor, nn

from imprompt.errors import UnknownModel
from imprompt.evaluation.suites.settings import DrawingSettings, MethodSettings
from imprompt.generation.pipeline_results import remove_safety_checker

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Method(ABC):
    """Something that draws pictures after a reference.

    Args:
        method: which models
        drawing: how it draws
        device: where
    """

    def __init__(self, method: MethodSettings, drawing: DrawingSettings, device: torch.device) -> None:
        self.method, self.drawing, self.device = method, drawing, device
        self.dtype = torch.float32 if device.type == "cpu" else _TYPES[drawing.precision]

    @abstractmethod
    def draw(
        self, reference: Image.Image, text: str, scale: float | int, seeds: Sequence[int]
    ) -> list[Image.Image]:
        """One picture for each seed, in one call.

        Args:
            reference: upright RGB
            text: the prompt
            scale: λ; 1 where there is none
            seeds: of the pictures' noise, drawn on the CPU: a seed is the same noise on every device
        """

    @abstractmethod
    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every network that pictures follow from, under its name."""

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and a few values of every weight: other models have another one."""
        digest = hashlib.sha256()
        for name, module in self.modules():
            for inner, tensor in module.state_dict().items():
                digest.update(f"{name}.{inner} {tuple(tensor.shape)}".encode())
                digest.update(_glance(tensor))
        return digest.hexdigest()

    def arguments(self, text: str | None, seeds: Sequence[int], *, sized: bool = True) -> dict[str, Any]:
        """What diffusers' pipelines call it: steps, w, generators, prompts, size."""
        drawing, count = self.drawing, len(seeds)
        asked: dict[str, Any] = {
            "num_inference_steps": drawing.steps,
            "guidance_scale": drawing.guidance_scale,
            "generator": generators(seeds),
        }
        if text is not None:
            asked |= {"prompt": [text] * count, "negative_prompt": [drawing.negative_prompt] * count}
        if sized and drawing.size:
            asked |= {"height": drawing.size, "width": drawing.size}
        return asked

    def prepared(self, pipe: Any) -> Callable[..., Any]:
        """Put a pipeline where it computes, with the sampler asked for; without bar and safety checker.

        The checker paints a picture black that it dislikes, and a black picture is no answer to a reference.
        """
        remove_safety_checker(pipe)
        if self.drawing.sampler == "ddim" and hasattr(pipe, "scheduler"):
            pipe.scheduler = as_ddim(pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        return cast(Callable[..., Any], pipe.to(self.device))


def generators(seeds: Sequence[int]) -> list[Generator]:
    """One for each picture."""
    return [Generator().manual_seed(seed) for seed in seeds]


def as_ddim(scheduler: Any) -> Any:
    """DDIM over the same noise schedule; what is DDIM already stays as it is."""
    return scheduler if isinstance(scheduler, DDIMScheduler) else DDIMScheduler.from_config(scheduler.config)


def loaded(kind: Any, name: str, **options: Any) -> Any:
    """A model or pipeline of diffusers or transformers.

    Raises:
        UnknownModel: it is not here and cannot be fetched, or is another kind
    """
    try:
        return kind.from_pretrained(name, **options)
    except Exception as error:  # foreign folders and a network: this may fail in any way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnknownModel(f"{kind.__name__} {name} cannot be loaded: {reason[0]}") from error


def modules_of(pipe: Any, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The networks of a diffusers pipeline."""
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            yield f"{name}{part}", module


def _glance(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    few = torch.cat([flat[:4], flat[-4:]]).to("cpu", torch.float64)
    return few.numpy().tobytes()
