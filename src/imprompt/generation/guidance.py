"""Guidance in a part of the steps only (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724).

diffusers can change its guidance between steps only. Before the interval both halves of the batch are
computed, and guidance is as good as 1. After it the negative half is dropped, where the pipeline takes all
that it has doubled back from a callback; an attached adapter asks at every step which rows there are, and
follows.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from imprompt.generation.settings import Settings

_DOUBLED = (
    "prompt_embeds",
    "add_text_embeds",
    "add_time_ids",
    "image",
    "control_image",
    "mask",
    "masked_image_latents",
)
"""What pipelines hold twice with guidance, negative half first."""

_AS_GOOD_AS_ONE = math.nextafter(1.0, 2.0)
"""Guidance at which a pipeline computes both halves, and the result is the positive one but for rounding."""

AfterStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""What a pipeline calls after a step: (pipeline, step, timestep, tensors) → tensors."""


def step_arguments(pipe: object, settings: Settings, on_step: Callable[[], None] | None) -> dict[str, Any]:
    """Return the arguments of a call that guide an interval of the steps, and report every step."""
    start, end = settings.guidance_interval
    if (start, end) == (0, 1):
        return {} if on_step is None else {"callback_on_step_end": _reporting(on_step)}
    droppable = _droppable(pipe) if end < 1 else []
    return {
        "guidance_scale": settings.guidance_scale if start == 0 else _AS_GOOD_AS_ONE,
        "callback_on_step_end": _guiding(settings, droppable, on_step),
        "callback_on_step_end_tensor_inputs": ["latents", *droppable],
    }


def _reporting(on_step: Callable[[], None]) -> AfterStep:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    return callback


def _guiding(settings: Settings, droppable: list[str], on_step: Callable[[], None] | None) -> AfterStep:
    start, end = settings.guidance_interval

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step()
        # Rounding must not move a step across a bound: 0.6 of 5 steps are 3.
        position = (step + 1) / pipe.num_timesteps + 1e-9
        if start <= position < end or (position >= start and end == 1):
            pipe._guidance_scale = settings.guidance_scale
        elif position >= end and droppable and pipe.do_classifier_free_guidance:
            pipe._guidance_scale = 1.0
            return {name: _positive(x) if name in droppable else x for name, x in tensors.items()}
        elif not droppable or position < start:
            pipe._guidance_scale = _AS_GOOD_AS_ONE
        return tensors

    return callback


def _droppable(pipe: object) -> list[str]:
    """What the pipeline offers of the doubled tensors; none where it would not take all of them back.

    diffusers 0.42: inpainting pipelines with a ControlNet offer the mask but do not take it back; perturbed
    attention and InstructPix2Pix have a third part.
    """
    kind = type(pipe)
    if any(part in kind.__name__ for part in ("ControlNetInpaint", "PAG", "Pix2Pix", "XLControlNetUnion")):
        return []
    offered = getattr(kind, "_callback_tensor_inputs", ())
    names = [name for name in _DOUBLED if name in offered]
    return names if "prompt_embeds" in names else []


def _positive(doubled: Any) -> Any:
    """The positive half; of each, if a pipeline holds several (one for every ControlNet)."""
    if isinstance(doubled, list):
        return [_positive(one) for one in doubled]
    assert isinstance(doubled, torch.Tensor)
    return doubled.chunk(2)[1]
