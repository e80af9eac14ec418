"""Prompts and image prompts → pictures, on any diffusers pipeline.

Pictures are made one at a time, each from a generator of its own: a seed gives the same picture to the bit,
alone or as one of many, which no batch can promise (the order of sums in a matrix product depends on the
batch).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from imprompt.adapter.encode import ReferenceLike
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.diffusers_internals import report_four_input_channels
from imprompt.generation.guidance import step_arguments
from imprompt.generation.job import DEFAULT_STEPS
from imprompt.generation.models import pipeline_for
from imprompt.generation.pipeline_results import call_pipeline
from imprompt.generation.settings import Settings, call_arguments, check_settings

References = Sequence[ReferenceLike | list[ReferenceLike]]
"""Image prompts that act together; see `ImagePromptAdapter.references`."""

Prompted = Sequence[tuple[ImagePromptAdapter, References]]
"""Every adapter once, with the references that it reads; all act together."""


def generate(
    pipe: DiffusionPipeline,
    adapter: ImagePromptAdapter,
    references: References,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    guidance_scale: float | int = 7.5,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    size: int | None = None,
) -> list[Image.Image]:
    """Make one picture for each seed, from all references acting together, and leave the pipeline as it was.

    For several adapters, a picture to start from, inpainting and ControlNets: `generate_each`.

    Args:
        pipe: any diffusers text-to-image pipeline with a U-Net, to which this adapter is not attached
        adapter: an adapter that fits it
        references: image prompts; each is a `Reference` (with its own settings) or simply a picture
        prompt: what the text asks for; "" leaves everything to the image prompts
        negative_prompt: what the text asks to avoid
        guidance_scale: w of classifier-free guidance; at most 1 turns guidance off
        steps: denoising steps, DEFAULT_STEPS if not given
        seeds: from 0 to 2**63 - 1; the same seed gives the same picture on the same machine
        size: width and height in pixels, a multiple of 8; the base's own if not given

    Raises:
        ConfigError: a setting that this base cannot honour
        AttachmentError, AdapterMismatch: see `ImagePromptAdapter.attach`
        InvalidReference, ImageError: see `ImagePromptAdapter.references`
        OutputError: a picture that the base's safety checker painted black, or that is not finite
    """
    settings = Settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        steps=DEFAULT_STEPS if steps is None else steps,
        size=None if size is None else (size, size),
    )
    return list(generate_each(pipe, [(adapter, references)], settings, seeds=seeds))


def generate_each(
    pipe: DiffusionPipeline,
    prompted: Prompted,
    settings: Settings,
    *,
    seeds: Sequence[int] = (0,),
    on_step: Callable[[], None] | None = None,
) -> Iterator[Image.Image]:
    """Make pictures one after another, each as soon as it is asked for; settings are checked at once.

    Args:
        pipe: as for `generate`; with a picture to start from or a ControlNet, the diffusers pipeline that is
            meant for that is made from it, and shares its models
        prompted: adapters, and the references that each reads
        settings: everything else
        seeds: see `generate`
        on_step: called after every denoising step

    Raises:
        ImpromptError: as `generate`; those about references come with the first picture.
    """
    check_settings(pipe, settings, seeds)
    called = pipeline_for(pipe, settings)
    taken = inspect.signature(type(called).__call__).parameters
    arguments = call_arguments(pipe, settings) | step_arguments(called, settings, on_step)
    if "height" not in taken:  # image-to-image, which takes it from the picture
        del arguments["width"], arguments["height"]
    return _pictures(cast(Callable[..., Any], called), prompted, arguments, seeds)


def _pictures(
    call: Callable[..., Any], prompted: Prompted, arguments: Mapping[str, Any], seeds: Sequence[int]
) -> Iterator[Image.Image]:
    with ExitStack() as attached:
        for adapter, references in prompted:
            attached.enter_context(adapter.attach(call))
            attached.enter_context(adapter.references(*references))
        for seed in seeds:
            # On the CPU, so that a seed means the same noise on every device.
            generator = torch.Generator("cpu").manual_seed(seed)
            with report_four_input_channels(call):
                (picture,) = call_pipeline(call, {**arguments, "generator": generator}, seeds=[seed])
            yield _with_rest(picture, arguments)


def _with_rest(painted: Image.Image, arguments: Mapping[str, Any]) -> Image.Image:
    """Where a mask is black the picture stays as it was; the autoencoder would change it a little."""
    if "mask_image" not in arguments:
        return painted
    return Image.composite(painted, arguments["image"], arguments["mask_image"].convert("L"))
