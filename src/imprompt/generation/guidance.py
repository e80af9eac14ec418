"""Guidance in a part of the steps only (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724).

diffusers can change its guidance between steps only. Before the interval both halves of the batch are
computed, with a guidance scale just above 1. After it the negative half is dropped, if the pipeline takes all
its doubled tensors back from a callback. An attached adapter reads the rows at every step, so it follows.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from imprompt.attention.diffusers_internals import list_doubled_tensors, set_guidance_scale
from imprompt.generation.settings import Settings

_JUST_ABOVE_ONE = math.nextafter(1.0, 2.0)
"""With this guidance scale a pipeline computes both halves, and returns the positive one up to rounding."""

AfterStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""A callback that a pipeline calls after a step: (pipeline, step, timestep, tensors) → tensors."""


def build_step_arguments(
    pipe: object, settings: Settings, on_step: Callable[[], None] | None
) -> dict[str, Any]:
    """Return arguments for a pipeline call that restrict guidance to its interval and report every step."""
    start, end = settings.guidance_interval
    if (start, end) == (0, 1):
        return {} if on_step is None else {"callback_on_step_end": _make_reporting_callback(on_step)}
    droppable = list_doubled_tensors(pipe) if end < 1 else []
    return {
        "guidance_scale": settings.guidance_scale if start == 0 else _JUST_ABOVE_ONE,
        "callback_on_step_end": _make_guiding_callback(settings, droppable, on_step),
        "callback_on_step_end_tensor_inputs": ["latents", *droppable],
    }


def _make_reporting_callback(on_step: Callable[[], None]) -> AfterStep:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    return callback


def _make_guiding_callback(
    settings: Settings, droppable: list[str], on_step: Callable[[], None] | None
) -> AfterStep:
    start, end = settings.guidance_interval

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step()
        # Rounding must not move a step across a bound: 0.6 of 5 steps is 3.
        position = (step + 1) / pipe.num_timesteps + 1e-9
        if start <= position < end or (position >= start and end == 1):
            set_guidance_scale(pipe, settings.guidance_scale)
        elif position >= end and droppable and pipe.do_classifier_free_guidance:
            set_guidance_scale(pipe, 1.0)
            return {name: _positive(x) if name in droppable else x for name, x in tensors.items()}
        elif not droppable or position < start:
            set_guidance_scale(pipe, _JUST_ABOVE_ONE)
        return tensors

    return callback


def _positive(doubled: Any) -> Any:
    """Return the positive half, or a list of them if there is a tensor for every ControlNet."""
    if isinstance(doubled, list):
        return [_positive(one) for one in doubled]
    assert isinstance(doubled, torch.Tensor)
    return doubled.chunk(2)[1]
