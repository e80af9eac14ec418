"""What a running diffusers pipeline is doing: how it stacks its batch, at which step it is, what it paints.

All of it is read in the running call itself, as several pipelines may share one U-Net, several threads one
pipeline, and people write sampling loops of their own.
"""

import sys
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from imprompt.errors import AmbiguousBatch, AttachmentError

Branch = Literal["positive", "negative"]
Branches = tuple[Branch, ...]

_SD, _XL = "StableDiffusion", "StableDiffusionXL"
_SAMPLING_LOOPS = frozenset(
    f"{name}Pipeline.__call__"
    for name in (
        *(f"{_SD}{kind}" for kind in ("", "Img2Img", "Inpaint", "Adapter", "Depth2Img", "InstructPix2Pix")),
        *(f"{_SD}ControlNet{kind}" for kind in ("", "Img2Img", "Inpaint", "PAG", "PAGInpaint")),
        *(f"{_SD}PAG{kind}" for kind in ("", "Img2Img", "Inpaint")),
        *(
            f"{_XL}{kind}"
            for kind in ("", "Img2Img", "Inpaint", "Adapter", "PAG", "PAGImg2Img", "PAGInpaint")
        ),
        *(f"{_XL}ControlNet{kind}" for kind in ("", "Img2Img", "Inpaint", "PAG", "PAGImg2Img")),
        *(f"LatentConsistencyModel{kind}" for kind in ("", "Img2Img")),
        *(f"AnimateDiff{kind}" for kind in ("", "VideoToVideo", "ControlNet", "PAG", "SDXL")),
        *(f"Kolors{kind}" for kind in ("", "Img2Img", "PAG")),
    )
)
"""The sampling loops of diffusers whose batches the tests compare with the paper's equation, row by row.

In each of them `do_classifier_free_guidance` says how the batch is stacked, and the loop is
`for i, t in enumerate(timesteps)`. A subclass that calls one of them with `super()` is known by it; one with
a loop of its own is not.
"""


_BETWEEN = ("torch.", "imprompt.attention.batch", "imprompt.attention.attachment", "imprompt.attention.hooks")
"""Modules that stand between a sampling loop and this one on the stack, and hold no sampling loop."""


_PERTURBED = "do_perturbed_attention_guidance"


class PipelineCall(NamedTuple):
    """A call of a pipeline that has called its denoiser just now.

    Args:
        pipeline: whose method runs
        loop: the running method's qualified name, e.g. "StableDiffusionPipeline.__call__"
        is_known: whether this is one of diffusers' own sampling loops that imprompt knows
        variables: the method's local variables as they are now
    """

    pipeline: object
    loop: str
    is_known: bool
    variables: Mapping[str, Any]

    @property
    def generation(self) -> object:
        """An object of this generation's own: the list of timesteps that it goes through."""
        return self.variables.get("timesteps") if self.is_known else scheduler_timesteps(self.pipeline)


def find_running_call(unet: nn.Module, target: object) -> PipelineCall | None:
    """Find the innermost pipeline up the stack that has called this denoiser; None if there is none.

    Args:
        unet: the denoiser, not compiled
        target: counted as a pipeline, whatever its class
    """
    frame = sys._getframe(1)
    while frame is not None:
        # Reading a frame's variables copies them all, at every step: not where no pipeline can be.
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_BETWEEN) and frame.f_code.co_varnames[:1] == ("self",):
            variables = frame.f_locals
            owner = variables.get("self")
            if (owner is target or isinstance(owner, DiffusionPipeline)) and _denoises_with(owner, unet):
                loop = frame.f_code.co_qualname
                is_known = module.startswith("diffusers.pipelines.") and loop in _SAMPLING_LOOPS
                return PipelineCall(owner, loop, is_known, variables)
        frame = frame.f_back
    return None


def _denoises_with(owner: object, unet: nn.Module) -> bool:
    module = None if isinstance(owner, nn.Module) else getattr(owner, "unet", None)
    return module is not None and getattr(module, "_orig_mod", module) is unet


def read_branches(call: PipelineCall | None, target: object) -> Branches:
    """Say how a running diffusers pipeline stacks its batch.

    Stable Diffusion stacks (negative, positive) with guidance and nothing without; perturbed-attention
    guidance repeats the positive half (diffusers, pipelines/pag/pag_utils.py); InstructPix2Pix stacks
    (positive, negative, negative) (pipeline_stable_diffusion_instruct_pix2pix.py). A bare U-Net that no
    pipeline calls has positive rows only.

    Args:
        call: what has called the denoiser
        target: what the adapter is attached to

    Raises:
        AttachmentError: a sampling loop that imprompt does not know, or no pipeline at all
    """
    if call is None and isinstance(target, nn.Module):
        return ("positive",)
    if call is None and isinstance(target, DiffusionPipeline):
        raise AttachmentError(
            f"the U-Net is called, but not by the {type(target).__name__} that the adapter is attached to; "
            "attach to what calls it, or give references(..., branches=...)"
        )
    if call is None or not call.is_known:
        kind, loop = (type(call.pipeline), call.loop) if call else (type(target), "what calls its U-Net")
        raise AttachmentError(
            f"{kind.__name__} does not tell how it stacks its batch ({loop} is none of the sampling loops "
            "that imprompt knows); give references(..., branches=...)"
        )
    pipeline = call.pipeline
    guided = bool(getattr(pipeline, "do_classifier_free_guidance"))  # noqa: B009
    # AskedX of the class, as diffusers looks long for what an object has not.
    kind = type(pipeline)
    perturbed = hasattr(kind, _PERTURBED) and bool(getattr(pipeline, _PERTURBED))
    if guided and hasattr(kind, "image_guidance_scale"):
        return "positive", "negative", "negative"
    return (("negative",) if guided else ()) + (("positive",) * (2 if perturbed else 1))


def check_rows(call: PipelineCall, branches: Branches, rows: int) -> None:
    """Make sure that a known pipeline calls its denoiser with as many rows as it makes pictures.

    Args:
        call: of a known sampling loop; others are not checked
        branches: how the batch is stacked
        rows: in the batch, a video counted as one

    Raises:
        AmbiguousBatch: other rows than the pipeline's own
    """
    each = call.variables.get("num_images_per_prompt", call.variables.get("num_videos_per_prompt"))
    prompts = call.variables.get("batch_size")
    if not call.is_known or not isinstance(each, int) or not isinstance(prompts, int):
        return
    if rows != prompts * each * len(branches):
        raise AmbiguousBatch(
            f"{type(call.pipeline).__name__} makes {prompts * each} pictures in {len(branches)} branches "
            f"({', '.join(branches)}), but its U-Net is called with {rows} rows; "
            "give references(..., branches=...)"
        )


TAKES_NO_PICTURE = (
    "it takes no ip_adapter_image and no ip_adapter_image_embeds; use adapter.references(picture)"
)
"""What is said where diffusers' own image prompts are given to a pipeline that an adapter of ours is on."""


def check_no_other_prompt(call: PipelineCall) -> None:
    """Make sure that a pipeline was not given image prompts of diffusers' own, which have no effect.

    Raises:
        AttachmentError: it was
    """
    variables = call.variables
    if variables.get("ip_adapter_image_embeds") is not None or variables.get("ip_adapter_image") is not None:
        raise AttachmentError(
            f"an adapter of imprompt is attached to the U-Net of this {type(call.pipeline).__name__}: "
            f"{TAKES_NO_PICTURE}"
        )


class Moment(NamedTuple):
    """Where a generation is.

    Args:
        step: number of this call of the denoiser, from 0
        steps: how many calls this generation makes
        noise: 1 - t / (T - 1) for timestep t of T in training
        sampler_step: number of the sampler's step that the call belongs to; samplers of second order call
            the denoiser twice in a step
        sampler_steps: how many steps the sampler makes, the n that the user asked for
    """

    step: int
    steps: int
    noise: float
    sampler_step: int
    sampler_steps: int


class Clock:
    """Tells at which step a pipeline is.

    In a sampling loop that imprompt knows, the loop itself says so. In any other, it is found by the timestep
    that the denoiser is called with, in the list that the scheduler made for the generation; a timestep that
    stands there twice is told apart by the scheduler's own count of its steps.
    """

    def __init__(self, pipeline: object) -> None:
        self.pipeline = pipeline
        self.call: PipelineCall | None = None
        """What has called the denoiser, as of the present forward pass."""
        self._list: Tensor | None = None
        self._first = -1

    @property
    def generation(self) -> object:
        """An object of the running generation's own: the list of timesteps that it goes through."""
        return self.call.generation if self.call else scheduler_timesteps(self.pipeline)

    def moment(self, timestep: Tensor | float | int) -> Moment:
        """Return where the generation is.

        Raises:
            AttachmentError: nothing tells the step
        """
        pipeline = self.call.pipeline if self.call else self.pipeline
        scheduler: Any = getattr(pipeline, "scheduler", None)
        now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        if self.call is not None and self.call.is_known:
            step, steps = self.call.variables["i"], len(self.call.variables["timesteps"])
        else:
            step, steps = self._find_step(pipeline, scheduler, now)
        noise = 1 - now / (scheduler.config.num_train_timesteps - 1)
        return Moment(step, steps, noise, *sampler_position(scheduler, step, steps))

    def _find_step(self, pipeline: object, scheduler: Any, now: float) -> tuple[int, int]:
        """Find the step by the timestep, for a sampling loop that imprompt does not know."""
        listed = scheduler_timesteps(pipeline)
        if listed is None:
            raise AttachmentError(f"{type(pipeline).__name__} has no scheduler to tell the step by")
        if listed is not self._list:
            self._list, self._first = listed, -1
        place = _find_timestep(scheduler, listed, now, self._first)
        if self._first < 0 or place < self._first:
            self._first = place
        return place - self._first, len(listed) - self._first


def scheduler_timesteps(pipeline: object) -> Tensor | None:
    """The list of timesteps that a pipeline's scheduler has made for the running generation."""
    listed = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    return listed if isinstance(listed, Tensor) else None


def sampler_position(scheduler: Any, step: int, steps: int) -> tuple[int, int]:
    """Return the sampler's step that a call of the denoiser belongs to, and how many the sampler makes.

    Samplers of second order call the denoiser twice in every step but the last. PNDM calls it twice in the
    first step, or, with Runge-Kutta, four times in each of the first three. All others call it once.

    Args:
        scheduler: diffusers' scheduler
        step: number of the call, from 0
        steps: how many calls there are
    """
    if getattr(scheduler, "order", 1) == 2:
        return step // 2, (steps + 1) // 2
    if "skip_prk_steps" in scheduler.config and steps == len(scheduler.timesteps):
        if scheduler.config.skip_prk_steps:
            return max(0, step - 1), max(1, steps - 1)
        return (step // 4, steps - 9) if step < 12 else (step - 9, steps - 9)
    return step, steps


def _find_timestep(scheduler: Any, listed: Tensor, timestep: float, first: int) -> int:
    """Where a timestep stands in the scheduler's list."""
    places = [place for place, t in enumerate(listed.tolist()) if abs(t - timestep) < 1e-3]
    if not places:
        raise AttachmentError(
            f"the denoiser is called at timestep {timestep:g}, which the pipeline's scheduler does not "
            "have; references with steps need a pipeline that follows its scheduler"
        )
    if len(places) == 1:
        return places[0]
    for counter in (getattr(scheduler, "step_index", None), getattr(scheduler, "begin_index", None)):
        if counter in places:
            return int(counter)
    if hasattr(scheduler, "index_for_timestep") and getattr(scheduler, "step_index", None) is None:
        return int(scheduler.index_for_timestep(listed[places[0]]))  # where it will begin to count
    if first >= 0 and isinstance(getattr(scheduler, "counter", None), int):
        return first + scheduler.counter
    raise AttachmentError(
        f"timestep {timestep:g} stands twice in the list of {type(scheduler).__name__}, so the step cannot "
        "be told in a sampling loop that imprompt does not know; use another scheduler, or no steps"
    )


def find_picture_box(call: PipelineCall | None) -> tuple[float, float, float, float] | None:
    """Say which part of the picture the latents are: inpainting may cut out the surroundings of its mask.

    diffusers cuts `crops_coords` out of the picture and enlarges it to the size of the latents; where the
    proportions differ, what it paints reaches beyond (`padding_mask_crop`, "fill", image_processor.py).

    Returns:
        left, top, right, bottom as fractions of the picture's width and height; None: all of it
    """
    coordinates = call.variables.get("crops_coords") if call else None
    if call is None or coordinates is None:
        return None
    left, top, right, bottom = coordinates
    original = call.variables.get("original_image")
    original = original[0] if isinstance(original, list) else original
    width, height = call.variables.get("width"), call.variables.get("height")
    if original is None or not isinstance(width, int) or not isinstance(height, int):
        raise AmbiguousBatch(f"a mask cannot be cut as {type(call.pipeline).__name__} cuts its picture")
    # Enlarged until one side fits, and put into the middle.
    pixels = max((right - left) / width, (bottom - top) / height)
    across, down = width * pixels / 2, height * pixels / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = x - across, y - down, x + across, y + down
    return tuple(side / whole for side, whole in zip(box, 2 * original.size, strict=True))  # pyright: ignore[reportReturnType]


def check_whole(call: PipelineCall | None, size: tuple[int, int]) -> None:
    """Make sure that the denoiser sees the whole of the latents, which a mask is laid on.

    Args:
        call: what has called the denoiser
        size: height and width of what it sees

    Raises:
        AmbiguousBatch: it sees a part, as in pipelines that go over a large picture in tiles
    """
    latents = call.variables.get("latents") if call else None
    if call is None or not isinstance(latents, Tensor) or latents.ndim not in (4, 5):
        return
    whole = (latents.shape[-2], latents.shape[-1])
    if size != whole:
        raise AmbiguousBatch(
            f"{type(call.pipeline).__name__} shows its U-Net {size[0]} × {size[1]} of {whole[0]} × "
            f"{whole[1]} latent pixels at a time, so a mask over the whole picture cannot be laid on them; "
            "leave the masks away, or use a pipeline without tiles"
        )
