"""What a running diffusers pipeline is doing: how it stacks its batch, and at which step it is."""

import inspect
from typing import Literal, NamedTuple

from torch import Tensor

from imprompt.errors import AttachmentError

Branch = Literal["positive", "negative"]
Branches = tuple[Branch, ...]

_MISLEADING = ("LEdits", "StableDiffusionPanorama")
"""Pipelines whose `do_classifier_free_guidance` does not say how they stack their batch."""


def guidance_branches(pipeline: object) -> Branches:
    """Say how a running diffusers pipeline stacks its batch.

    Stable Diffusion stacks (negative, positive) with guidance and nothing without; perturbed-attention
    guidance repeats the positive half (diffusers, pipelines/pag/pag_utils.py); InstructPix2Pix stacks
    (positive, negative, negative) (pipeline_stable_diffusion_instruct_pix2pix.py).

    Raises:
        AttachmentError: a pipeline that does not tell, or that is not the one that runs
    """
    kind = type(pipeline)
    known = isinstance(getattr(kind, "do_classifier_free_guidance", None), property)
    if not known or kind.__name__.startswith(_MISLEADING):
        raise AttachmentError(
            f"{kind.__name__} does not tell how it stacks its batch; give references(..., branches=...)"
        )
    if not _is_running(pipeline):
        raise AttachmentError(
            f"the U-Net is called, but not by the {kind.__name__} that the adapter is attached to; attach "
            "to what calls it, or give references(..., branches=...)"
        )
    guided = bool(getattr(pipeline, "do_classifier_free_guidance"))  # noqa: B009
    perturbed = bool(getattr(pipeline, "do_perturbed_attention_guidance", False))
    if guided and hasattr(kind, "image_guidance_scale"):
        return "positive", "negative", "negative"
    return (("negative",) if guided else ()) + (("positive",) * (2 if perturbed else 1))


def _is_running(pipeline: object) -> bool:
    """Whether one of its methods is up the stack.

    Several pipelines may share one U-Net, and people write sampling loops of their own. The settings of a
    pipeline's last run say nothing about these, and would lay image prompts on the wrong rows without a word.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is pipeline:
            return True
        frame = frame.f_back
    return False


class Moment(NamedTuple):
    """Where a generation is: at `step` of `steps`, and 1 - t / (T - 1) for timestep t of T in training."""

    step: int
    steps: int
    noise: float


class Clock:
    """Tells at which step a pipeline is, from the timestep that its denoiser is called with.

    The scheduler makes a new list of timesteps for every generation. Where a timestep stands in it twice, as
    with schedulers of second order, the calls are told apart by their order. Image-to-image starts within the
    list, so the first call of a generation is its step 0.
    """

    def __init__(self, pipeline: object) -> None:
        self.pipeline = pipeline
        self._list: Tensor | None = None
        self._timesteps: list[float] = []
        self._first = self._last = -1

    @property
    def generation(self) -> object:
        """An object of the running generation's own: the list of timesteps that its scheduler made for it."""
        return getattr(getattr(self.pipeline, "scheduler", None), "timesteps", None)

    def moment(self, timestep: Tensor | float | int) -> Moment:
        """Return where the generation is.

        Raises:
            AttachmentError: the timestep is not one of the scheduler's
        """
        listed = self.generation
        if not isinstance(listed, Tensor):
            raise AttachmentError(f"{type(self.pipeline).__name__} has no scheduler to tell the step by")
        if listed is not self._list:
            self._list, self._timesteps, self._first, self._last = listed, listed.tolist(), -1, -1
        now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        self._last = self._position(now)
        if self._first < 0:
            self._first = self._last
        steps = getattr(self.pipeline, "num_timesteps", None) or len(self._timesteps) - self._first
        training_steps = getattr(self.pipeline, "scheduler").config.num_train_timesteps  # noqa: B009
        return Moment(self._last - self._first, steps, 1 - now / (training_steps - 1))

    def _position(self, timestep: float) -> int:
        places = [i for i, t in enumerate(self._timesteps) if abs(t - timestep) < 1e-3]
        if not places:
            raise AttachmentError(
                f"the denoiser is called at timestep {timestep:g}, which the pipeline's scheduler does not "
                "have; references with steps need a pipeline that follows its scheduler"
            )
        return next((place for place in places if place > self._last), places[-1])
