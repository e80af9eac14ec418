"""Guidance in a part of the steps only (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724).

The bounds are fractions of the steps, as `start` and `stop` of diffusers' guiders are. Step k of n, counted
from 0, is guided if start ≤ k / n < end.

diffusers can change its guidance between steps only. Outside the interval the negative half of text, image
prompt, mask and every other input is dropped, so that a step has one row per picture, if the pipeline takes
all its doubled tensors back from a callback. An attached adapter reads the rows at every step, so it follows.
Other pipelines compute both halves, with a guidance scale just above 1, and so does every first step outside
the interval, because nothing is called before it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from imprompt.attention.denoiser_call import is_kind
from imprompt.attention.diffusers_internals import list_doubled_tensors, set_guidance_scale
from imprompt.generation.job import DEFAULT_GUIDANCE
from imprompt.generation.settings import Settings
from imprompt.generation.transformer_bases import find_transformer, is_flux

USUAL_GUIDANCE = {"mini": 3.0, "FLUX.1": 3.5, "SD3.5 Large": 4.5}
"""Family → the guidance scale in its publishers' examples, where it is not `DEFAULT_GUIDANCE`; the embedded
model keeps most of a reference at 3."""

_JUST_ABOVE_ONE = math.nextafter(1.0, 2.0)
"""With this guidance scale a pipeline computes both halves, and returns the positive one up to rounding."""

AfterStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""A callback that a pipeline calls after a step: (pipeline, step, timestep, tensors) → tensors."""


def find_usual_guidance(pipe: Any) -> float:
    """Return the guidance scale for a base where none is given."""
    if find_transformer(pipe) is not None:
        return USUAL_GUIDANCE["FLUX.1" if is_flux(pipe) else "SD3.5 Large"]
    return USUAL_GUIDANCE["mini"] if is_kind(pipe.vae, "PatchAutoencoder") else DEFAULT_GUIDANCE


def build_step_arguments(
    pipe: object, settings: Settings, on_step: Callable[[], None] | None
) -> dict[str, Any]:
    """Return arguments for a pipeline call that restrict guidance to its interval and report every step."""
    interval = settings.guidance_interval
    if tuple(interval) == (0, 1):
        return {} if on_step is None else {"callback_on_step_end": _make_reporting_callback(on_step)}
    droppable = list_doubled_tensors(pipe)
    return {
        "guidance_scale": settings.guidance_scale if is_guided(0.0, interval) else _JUST_ABOVE_ONE,
        "callback_on_step_end": IntervalGuidance(settings, droppable, on_step),
        "callback_on_step_end_tensor_inputs": ["latents", *droppable],
    }


def is_guided(position: float, interval: tuple[float | int, float | int]) -> bool:
    """Whether a step is guided; its position is the number of steps before it, divided by that of all."""
    start, end = interval
    return start <= position < end or (position >= start and end == 1)


def _make_reporting_callback(on_step: Callable[[], None]) -> AfterStep:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    return callback


class IntervalGuidance:
    """The callback after every step that turns guidance on and off for the next one.

    Args:
        settings: the guidance scale and the interval
        droppable: the names of the tensors whose negative half is dropped; empty: both halves are computed
        on_step: called after every step
    """

    def __init__(
        self, settings: Settings, droppable: list[str], on_step: Callable[[], None] | None = None
    ) -> None:
        self.settings, self.droppable, self.on_step = settings, droppable, on_step
        self.doubled: dict[str, Any] = {}
        """The tensors with both halves, while the pipeline has the positive ones."""

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors for the next step."""
        if self.on_step is not None:
            self.on_step()
        if step == 0:
            self.doubled = {}  # of the picture before
        # Rounding must not move a step across a bound: 0.6 of 5 steps is 3.
        position = (step + 1) / pipe.num_timesteps + 1e-9
        if is_guided(position, self.settings.guidance_interval):
            set_guidance_scale(pipe, self.settings.guidance_scale)
            doubled, self.doubled = self.doubled, {}
            return tensors | doubled
        if not self.droppable:
            set_guidance_scale(pipe, _JUST_ABOVE_ONE)
        elif pipe.do_classifier_free_guidance:
            set_guidance_scale(pipe, 1.0)
            self.doubled = {name: tensors[name] for name in self.droppable}
            return tensors | {name: _positive(doubled) for name, doubled in self.doubled.items()}
        return tensors


def _positive(doubled: Any) -> Any:
    """Return the positive half, or a list of them if there is a tensor for every ControlNet."""
    if isinstance(doubled, list):
        return [_positive(one) for one in doubled]
    assert isinstance(doubled, torch.Tensor)
    return doubled.chunk(2)[1]
