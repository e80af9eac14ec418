"""All that relies on private attributes, local variables and class names of diffusers, and of torch.compile.

A new version of diffusers breaks this file alone, and tests/test_diffusers_internals.py says where.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from diffusers.pipelines.free_noise_utils import SplitInferenceModule
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from imprompt.errors import AmbiguousBatch

Branch = Literal["positive", "negative"]
Branches = tuple[Branch, ...]

# Sampling loops

_SD, _XL = "StableDiffusion", "StableDiffusionXL"
SAMPLING_LOOPS = frozenset(
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

In each of them `do_classifier_free_guidance` tells how the batch is stacked, and the loop is
`for i, t in enumerate(timesteps)`. A subclass that calls one of them with `super()` is recognized by it; one
with a loop of its own is not.
"""

_FLUX, _SD3 = "Flux", "StableDiffusion3"
TWO_CALL_LOOPS = frozenset(
    f"{_FLUX}{kind}Pipeline.__call__"
    for kind in (
        *("", "Img2Img", "Inpaint", "Fill", "Kontext", "KontextInpaint"),
        *("ControlNet", "ControlNetImg2Img", "ControlNetInpaint"),
    )
)
"""The sampling loops for FLUX.1. With true guidance they call the transformer twice in a step, with
`prompt_embeds`, then with `negative_prompt_embeds`; without it once."""

STACKED_LOOPS = SAMPLING_LOOPS | frozenset(
    f"{_SD3}{kind}Pipeline.__call__"
    for kind in ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetInpainting")
)
KNOWN_LOOPS = STACKED_LOOPS | TWO_CALL_LOOPS

_BETWEEN = ("torch.", "imprompt.attention.", "imprompt.compat.")
"""Modules between a sampling loop and `find_running_call` on the stack; they contain no sampling loop."""


class PipelineCall(NamedTuple):
    """A running call of a pipeline, found while its denoiser is called.

    Args:
        pipeline: the object whose method runs
        loop: the running method's qualified name, e.g. "StableDiffusionPipeline.__call__"
        is_known: whether this is one of `KNOWN_LOOPS`
        variables: the method's local variables as they are now
    """

    pipeline: object
    loop: str
    is_known: bool
    variables: Mapping[str, Any]

    @property
    def timesteps(self) -> Tensor | None:
        """The list of timesteps of this generation: the loop's own, or the scheduler's."""
        return self.variables.get("timesteps") if self.is_known else get_timesteps(self.pipeline)

    @property
    def step(self) -> int:
        """The number of the loop's step, from 0; for known loops only."""
        return self.variables["i"]

    @property
    def samples(self) -> int | None:
        """The number of pictures (or videos) that the call makes; None if it cannot be found."""
        each = self.variables.get("num_images_per_prompt", self.variables.get("num_videos_per_prompt"))
        prompts = self.variables.get("batch_size")
        if not self.is_known or not isinstance(each, int) or not isinstance(prompts, int):
            return None
        return prompts * each

    @property
    def prompts(self) -> int | None:
        """The number of prompts; None if it cannot be found."""
        prompts = self.variables.get("batch_size")
        return prompts if self.is_known and isinstance(prompts, int) else None

    @property
    def image_embeddings(self) -> list[Tensor] | None:
        """The embeddings that the call has prepared for diffusers' own IP-Adapter."""
        return self.variables.get("image_embeds") if self.has_image_prompt else None

    @property
    def latents_size(self) -> tuple[int, int] | None:
        """Height and width of the latents."""
        latents = self.variables.get("latents")
        if not isinstance(latents, Tensor) or latents.ndim not in (4, 5):
            return None
        return latents.shape[-2], latents.shape[-1]

    @property
    def has_image_prompt(self) -> bool:
        """Whether the call was given an image prompt for diffusers' own IP-Adapter."""
        names = ("ip_adapter_image", "ip_adapter_image_embeds")
        return any(self.variables.get(name) is not None for name in names)

    @property
    def crop(self) -> tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int]] | None:
        """The part of the picture that inpainting repaints (`padding_mask_crop`); None: all of it.

        It is left, top, right and bottom in pixels, then the sizes of the picture and of the result.

        Raises:
            AmbiguousBatch: the sizes cannot be found
        """
        if self.variables.get("crops_coords") is None:
            return None
        original, width, height = (self.variables.get(name) for name in ("original_image", "width", "height"))
        original = original[0] if isinstance(original, list) else original
        if original is None or not isinstance(width, int) or not isinstance(height, int):
            kind = type(self.pipeline).__name__
            raise AmbiguousBatch(f"a mask cannot be cut as {kind} cuts its picture")
        return self.variables["crops_coords"], original.size, (width, height)


def find_running_call(denoiser: nn.Module, target: object) -> PipelineCall | None:
    """Find the innermost pipeline on the stack that has called this denoiser; None if there is none.

    Args:
        denoiser: the U-Net or transformer, not compiled
        target: accepted as a pipeline, whatever its class
    """
    frame = sys._getframe(1)
    while frame is not None:
        # Reading a frame's variables copies all of them, so it is avoided where no pipeline can be.
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_BETWEEN) and frame.f_code.co_varnames[:1] == ("self",):
            variables = frame.f_locals
            owner = variables.get("self")
            if (owner is target or isinstance(owner, DiffusionPipeline)) and _denoises_with(owner, denoiser):
                loop = frame.f_code.co_qualname
                is_known = module.startswith("diffusers.pipelines.") and loop in KNOWN_LOOPS
                return PipelineCall(owner, loop, is_known, variables)
        frame = frame.f_back
    return None


def _denoises_with(owner: object, denoiser: nn.Module) -> bool:
    module = None if isinstance(owner, nn.Module) else get_pipeline_denoiser(owner)
    return module is not None and unwrap_compiled(module) is denoiser


def get_pipeline_denoiser(pipeline: object) -> nn.Module | None:
    """Return the U-Net or the transformer of a pipeline; None if it has none."""
    modules = (getattr(pipeline, name, None) for name in ("unet", "transformer"))
    return next((module for module in modules if isinstance(module, nn.Module)), None)


def get_timesteps(pipeline: object) -> Tensor | None:
    """Return the list of timesteps that a pipeline's scheduler has made for the running generation."""
    timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    return timesteps if isinstance(timesteps, Tensor) else None


# Guidance


def find_branch_of_text(call: PipelineCall, text: Tensor) -> Branch:
    """Return the branch for which one of `TWO_CALL_LOOPS` calls its transformer with this text.

    Raises:
        AmbiguousBatch: the same tensor was given as the text of both branches
    """
    positive, negative = (call.variables.get(name) for name in ("prompt_embeds", "negative_prompt_embeds"))
    if positive is negative and positive is text and call.variables.get("do_true_cfg"):
        raise AmbiguousBatch(
            f"{type(call.pipeline).__name__} got the same tensor as prompt_embeds and "
            "negative_prompt_embeds, so the two branches of guidance cannot be told apart; give a copy "
            "(.clone()) as one of them"
        )
    return "negative" if text is negative and text is not positive else "positive"


_PERTURBED = "do_perturbed_attention_guidance"


def list_branches(pipeline: object) -> Branches:
    """Return the branches in which a pipeline with a known sampling loop stacks its batch.

    Stable Diffusion stacks (negative, positive) with guidance and nothing without. Perturbed-attention
    guidance repeats the positive half (diffusers, pipelines/pag/pag_utils.py). InstructPix2Pix stacks
    (positive, negative, negative) (pipeline_stable_diffusion_instruct_pix2pix.py).
    """
    is_guided = bool(getattr(pipeline, "do_classifier_free_guidance"))  # noqa: B009
    # hasattr of the class, as diffusers' `__getattr__` is slow for attributes that an object does not have.
    kind = type(pipeline)
    is_perturbed = hasattr(kind, _PERTURBED) and bool(getattr(pipeline, _PERTURBED))
    if is_guided and hasattr(kind, "image_guidance_scale"):
        return "positive", "negative", "negative"
    return (("negative",) if is_guided else ()) + (("positive",) * (2 if is_perturbed else 1))


_DOUBLED = (
    "prompt_embeds",
    "add_text_embeds",
    "add_time_ids",
    "image",
    "control_image",
    "mask",
    "masked_image_latents",
)
"""The variables that pipelines hold twice with guidance, negative half first."""


def list_doubled_tensors(pipe: object) -> list[str]:
    """Return the names of the doubled tensors that a pipeline exchanges with its callback.

    The list is empty if the pipeline would not take all of them back. In diffusers 0.42, inpainting pipelines
    with a ControlNet offer the mask but do not take it back; perturbed attention and InstructPix2Pix have a
    third part.
    """
    kind = type(pipe)
    if any(part in kind.__name__ for part in ("ControlNetInpaint", "PAG", "Pix2Pix", "XLControlNetUnion")):
        return []
    offered = getattr(kind, "_callback_tensor_inputs", ())
    names = [name for name in _DOUBLED if name in offered]
    return names if "prompt_embeds" in names else []


def set_guidance_scale(pipe: Any, guidance_scale: float) -> None:
    """Set the guidance scale of a running call."""
    pipe._guidance_scale = guidance_scale


# Other pipelines of the same models


def get_execution_device(pipe: Any) -> torch.device:
    """Return the device on which a pipeline computes, also where its models are kept in main memory."""
    return torch.device(getattr(pipe, "_execution_device", None) or pipe.device)


def copy_progress_bar(source: object, pipe: DiffusionPipeline) -> None:
    """Give a pipeline the progress-bar settings of another."""
    pipe.set_progress_bar_config(**getattr(source, "_progress_bar_config", {}))


@contextmanager
def report_four_input_channels(pipe: Any) -> Iterator[None]:
    """Make the config of an inpainting pipeline's U-Net say in_channels=4 inside this context.

    `StableDiffusionInpaintPipeline` recognizes a U-Net with mask channels by 9 input channels and one without
    by 4, and refuses any other number. Other pipelines are left alone.
    """
    if (
        "Inpaint" not in type(pipe).__name__
        or not hasattr(pipe, "unet")
        or pipe.unet.config.in_channels in (4, 9)
    ):
        yield
        return
    original = pipe.unet._internal_dict
    pipe.unet._internal_dict = FrozenDict({**original, "in_channels": 4})
    try:
        yield
    finally:
        pipe.unet._internal_dict = original


def find_split_layers(unet: nn.Module, layers: Mapping[int, nn.Module]) -> Collection[int]:
    """Return the layers to which diffusers' split inference gives a batch part by part."""
    if not isinstance(unet, UNetMotionModel):
        return ()
    splits = (module for module in unet.modules() if isinstance(module, SplitInferenceModule))
    inside = {id(part) for split in splits for part in split.modules()}
    return {layer for layer, attn in layers.items() if id(attn) in inside}


# diffusers' own IP-Adapter


def has_own_ip_adapter(denoiser: Any) -> bool:
    """Whether diffusers' own IP-Adapter is loaded on a denoiser."""
    if getattr(denoiser.config, "encoder_hid_dim_type", None) == "ip_image_proj":
        return True
    kinds = (type(processor).__name__ for processor in denoiser.attn_processors.values())
    return any(kind.startswith(("FluxIPAdapter", "SD3IPAdapter")) for kind in kinds)


@contextmanager
def receive_ip_adapters(unet: nn.Module, receive: Callable[[Any], None]) -> Iterator[None]:
    """Give the tensors that `load_ip_adapter` has read to a function, in place of the U-Net.

    Each element of what it gets is {"image_proj": ..., "ip_adapter": ...}. No LoRA is loaded.
    """

    def receive_weights(state_dicts: Any, **_: object) -> None:
        receive(state_dicts if isinstance(state_dicts, list) else [state_dicts])

    def find_no_loras(*_: object) -> dict[int, Any]:
        return {}

    methods = {"_load_ip_adapter_weights": receive_weights, "_load_ip_adapter_loras": find_no_loras}
    vars(unet).update(methods)
    try:
        yield
    finally:
        for name in methods:
            del vars(unet)[name]


# torch.compile


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """Return the module inside a compiled one, or the module itself."""
    return getattr(module, "_orig_mod", module)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module go through torch.compile."""
    return unwrap_compiled(module) is not module or get_compiled_call(module) is not None


def get_compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """Return the function that `module.compile()` has made of the module's call."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Callable[..., Any] | None) -> None:
    """Replace the function that `module.compile()` has made of the module's call."""
    module._compiled_call_impl = call  # pyright: ignore[reportAttributeAccessIssue]
