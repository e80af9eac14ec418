"""What a running diffusers pipeline is doing: how it stacks its batch, its step, and what it repaints.

All of it is read in the running call itself, as several pipelines may share one U-Net, several threads one
pipeline, and people write sampling loops of their own.
"""

from typing import Any, NamedTuple

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from imprompt.attention.cache_contexts import BRANCH_OF_CONTEXT, find_context_name
from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.diffusers_internals import (
    TWO_CALL_LOOPS,
    Branches,
    PipelineCall,
    find_branch_of_text,
    get_timesteps,
    list_branches,
)
from imprompt.attention.ip_adapter_calls import TAKES_NO_PICTURE, find_provider
from imprompt.errors import AmbiguousBatch, AttachmentError


def read_branches(call: PipelineCall | None, target: object, denoising: DenoiserCall) -> Branches:
    """Return the branches in which a running pipeline stacks its batch.

    A bare denoiser that no pipeline calls has positive rows only. The name of a `cache_context` of a
    transformer, "cond" or "uncond", says what a call is for, whoever calls.

    Args:
        call: the call of the pipeline
        target: what the adapter is attached to
        denoising: the call of its denoiser

    Raises:
        AttachmentError: a sampling loop that imprompt does not know, or no pipeline at all
    """
    if (named := BRANCH_OF_CONTEXT.get(find_context_name(denoising.denoiser))) is not None:
        return (named,)
    if call is None and isinstance(target, nn.Module):
        return ("positive",)
    if call is None and isinstance(target, DiffusionPipeline):
        raise AttachmentError(
            f"the {denoising.noun} is called, but not by the {type(target).__name__} that the adapter is "
            "attached to; attach to what calls it, or give adapter.use(..., branches=...)"
        )
    if call is None or not call.is_known:
        unknown = type(target), f"what calls its {denoising.noun}"
        kind, loop = (type(call.pipeline), call.loop) if call else unknown
        raise AttachmentError(
            f"{kind.__name__} does not tell how it stacks its batch ({loop} is none of the sampling loops "
            "that imprompt knows); give adapter.use(..., branches=...)"
        )
    return list_call_branches(call, denoising)


def list_call_branches(call: PipelineCall, denoising: DenoiserCall) -> Branches:
    """Return the branches for which a known sampling loop makes one call of its denoiser.

    Raises:
        AmbiguousBatch: they cannot be told apart
    """
    if call.loop in TWO_CALL_LOOPS:
        return (find_branch_of_text(call, denoising.text),)
    if denoising.options.get("skip_layers") is not None:
        return ("positive",)  # Skip-layer guidance calls the transformer again, for the positive rows alone.
    return list_branches(call.pipeline)


def check_rows(call: PipelineCall, branches: Branches, rows: int, noun: str) -> None:
    """Make sure that a known pipeline calls its denoiser with a row for each picture and branch.

    Args:
        call: the call of the pipeline; of an unknown sampling loop it is not checked
        branches: how the batch is stacked
        rows: rows of the batch, a video counted as one
        noun: what the message calls the denoiser

    Raises:
        AmbiguousBatch: another number of rows
    """
    if call.samples is not None and rows != call.samples * len(branches):
        raise AmbiguousBatch(
            f"{type(call.pipeline).__name__} makes {call.samples} pictures in {len(branches)} branches "
            f"({', '.join(branches)}), but its {noun} is called with {rows} rows; "
            "give adapter.use(..., branches=...)"
        )


def check_no_other_prompt(call: PipelineCall, denoiser: nn.Module, noun: str) -> None:
    """Refuse image prompts for diffusers' own IP-Adapter, if they have no effect.

    Raises:
        AttachmentError: the call has one
    """
    if call.has_image_prompt and find_provider(denoiser) is None:
        raise AttachmentError(
            f"an adapter of imprompt is attached to the {noun} of this {type(call.pipeline).__name__}: "
            f"{TAKES_NO_PICTURE}"
        )


class Moment(NamedTuple):
    """The position of a generation in its schedule.

    Args:
        step: the number of this call of the denoiser, from 0
        steps: the number of calls in this generation
        noise: 1 - t / (T - 1) for timestep t of T in training
        sampler_step: the number of the sampler's step to which the call belongs; samplers of second order
            call the denoiser twice in a step
        sampler_steps: the number of steps that the sampler makes, the n of the user
    """

    step: int
    steps: int
    noise: float
    sampler_step: int
    sampler_steps: int


class Clock:
    """Finds the step of a running pipeline.

    In a sampling loop that imprompt knows, the step is the loop's own. In any other, it is the place of the
    timestep with which the denoiser is called in the scheduler's list for the generation. If a timestep is
    twice in the list, the scheduler's own count of its steps decides.
    """

    def __init__(self, pipeline: object) -> None:
        self.pipeline = pipeline
        self.call: PipelineCall | None = None
        """The pipeline's call during a forward pass."""
        self._list: Tensor | None = None
        self._first = -1
        self._read: tuple[Tensor | None, list[float]] = None, []

    @property
    def generation(self) -> object:
        """The list of timesteps of the running generation, which identifies it."""
        return self.call.timesteps if self.call else get_timesteps(self.pipeline)

    def moment(self, timestep: Tensor | float | int) -> Moment:
        """Return the position of the generation.

        Raises:
            AttachmentError: the step cannot be found
        """
        pipeline = self.call.pipeline if self.call else self.pipeline
        scheduler: Any = getattr(pipeline, "scheduler", None)
        if self.call is not None and self.call.is_known and self.call.timesteps is not None:
            values = self._read_timesteps(self.call.timesteps)
            step, steps = self.call.step, len(values)
            now = values[step]
        else:
            now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
            step, steps = self._find_step(pipeline, scheduler, now)
        noise = 1 - now / count_timesteps(scheduler)
        return Moment(step, steps, noise, *find_sampler_position(scheduler, step, steps))

    def _read_timesteps(self, timesteps: Tensor) -> list[float]:
        """Return the values of a generation's timesteps; reading them waits for the device, so once only."""
        if timesteps is not self._read[0]:
            self._read = timesteps, [float(t) for t in timesteps.tolist()]
        return self._read[1]

    def _find_step(self, pipeline: object, scheduler: Any, now: float) -> tuple[int, int]:
        """Find the step by the timestep, for a sampling loop that imprompt does not know."""
        timesteps = get_timesteps(pipeline)
        if timesteps is None:
            raise AttachmentError(f"{type(pipeline).__name__} has no scheduler from which to find the step")
        if timesteps is not self._list:
            self._list, self._first = timesteps, -1
        place = _find_timestep(scheduler, timesteps, now, self._first)
        if self._first < 0 or place < self._first:
            self._first = place
        return place - self._first, len(timesteps) - self._first


def count_timesteps(scheduler: Any) -> int:
    """Return the timestep at which there is nothing but noise: T with flow matching, otherwise T - 1."""
    is_flow = "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas", False)
    return scheduler.config.num_train_timesteps - (0 if is_flow else 1)


def find_sampler_position(scheduler: Any, step: int, steps: int) -> tuple[int, int]:
    """Return the sampler's step to which a call of the denoiser belongs, and the number of its steps.

    Samplers of second order call the denoiser twice in every step but the last. PNDM calls it twice in the
    first step, or, with Runge-Kutta, four times in each of the first three. All others call it once.

    Args:
        scheduler: diffusers' scheduler
        step: the number of the call, from 0
        steps: the number of calls
    """
    if getattr(scheduler, "order", 1) == 2:
        return step // 2, (steps + 1) // 2
    if "skip_prk_steps" in scheduler.config and steps == len(scheduler.timesteps):
        if scheduler.config.skip_prk_steps:
            return max(0, step - 1), max(1, steps - 1)
        return (step // 4, steps - 9) if step < 12 else (step - 9, steps - 9)
    return step, steps


def _find_timestep(scheduler: Any, timesteps: Tensor, timestep: float, first: int) -> int:
    """Return the place of a timestep in the scheduler's list."""
    places = [place for place, t in enumerate(timesteps.tolist()) if abs(t - timestep) < 1e-3]
    if not places:
        raise AttachmentError(
            f"the denoiser is called at timestep {timestep:g}, which the pipeline's scheduler does not "
            "have; references with start, end or step_weights need a pipeline that follows its scheduler"
        )
    if len(places) == 1:
        return places[0]
    for counter in (getattr(scheduler, "step_index", None), getattr(scheduler, "begin_index", None)):
        if counter in places:
            return int(counter)
    if hasattr(scheduler, "index_for_timestep") and getattr(scheduler, "step_index", None) is None:
        return int(scheduler.index_for_timestep(timesteps[places[0]]))  # It will start counting there.
    if first >= 0 and isinstance(getattr(scheduler, "counter", None), int):
        return first + scheduler.counter
    raise AttachmentError(
        f"timestep {timestep:g} is twice in the list of {type(scheduler).__name__}, so the step cannot be "
        "found in a sampling loop that imprompt does not know; use another scheduler, or no start and end"
    )


def find_picture_box(call: PipelineCall | None) -> tuple[float, float, float, float] | None:
    """Return the part of the picture that the latents show: inpainting may crop to its mask.

    diffusers cuts `crops_coords` out of the picture and enlarges it to the size of the latents. Where the
    proportions differ, it repaints beyond it (`padding_mask_crop`, "fill", image_processor.py).

    Returns:
        left, top, right, bottom as fractions of the picture's width and height; None: all of it

    Raises:
        AmbiguousBatch: the sizes of the part cannot be found
    """
    if call is None or (crop := call.crop) is None:
        return None
    (left, top, right, bottom), picture_size, (width, height) = crop
    # The part is enlarged until one side fits, and put into the middle.
    pixels = max((right - left) / width, (bottom - top) / height)
    across, down = width * pixels / 2, height * pixels / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = x - across, y - down, x + across, y + down
    return tuple(side / whole for side, whole in zip(box, 2 * picture_size, strict=True))  # pyright: ignore[reportReturnType]


def check_whole(call: PipelineCall | None, size: tuple[int, int], noun: str) -> None:
    """Make sure that the denoiser processes the whole of the latents, which a mask covers.

    Args:
        call: the call of the pipeline
        size: height and width of the denoiser's input
        noun: what the message calls the denoiser

    Raises:
        AmbiguousBatch: it processes a part, as in pipelines that go over a large picture in tiles
    """
    whole = call.latents_size if call else None
    if call is not None and whole is not None and size != whole:
        raise AmbiguousBatch(
            f"{type(call.pipeline).__name__} shows its {noun} {size[0]} × {size[1]} of {whole[0]} × "
            f"{whole[1]} latent pixels at a time, so a mask over the whole picture cannot be applied; "
            "leave out the masks, or use a pipeline without tiles"
        )
