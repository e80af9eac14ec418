"""Generate pictures from prompts and image prompts, on any diffusers pipeline.

Pictures are generated one at a time, each with its own random generator, so that a seed gives the same
picture to the bit, alone or as one of many. A batch cannot promise this, as the order of sums in a matrix
product depends on its size.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from imprompt.adapter.encode import ReferenceLike, to_reference
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.diffusers_internals import report_four_input_channels
from imprompt.attention.feature_cache import FeatureCache
from imprompt.errors import ConfigError
from imprompt.generation.base_parts import set_scheduler
from imprompt.generation.description import add_description
from imprompt.generation.guidance import build_step_arguments, find_usual_guidance
from imprompt.generation.job import DEFAULT_STEPS
from imprompt.generation.job.speeds import apply_speed
from imprompt.generation.models import derive_pipeline
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.generation.prompts import build_prompt_arguments
from imprompt.generation.settings import Settings, build_call_arguments, check_settings
from imprompt.generation.transformer_bases import build_guidance_arguments

References = ReferenceLike | Sequence[ReferenceLike | list[ReferenceLike]]
"""One image prompt, or several that act together; see `ImagePromptAdapter.use`."""

AdapterReferences = Sequence[tuple[ImagePromptAdapter, References]]
"""Adapters with the references that each uses; all act together."""


def generate(
    pipe: DiffusionPipeline,
    adapter: ImagePromptAdapter,
    references: References,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    guidance_scale: float | int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    speed: str = "exact",
) -> list[Image.Image]:
    """Generate a picture for each seed from all references, and leave the pipeline as it was.

    Each picture carries its settings in `Image.info`. `imprompt.save_picture` writes them into the file;
    PIL's own `save` drops them.

    For several adapters, a picture to start from, inpainting and ControlNets: `generate_each`.

    Args:
        pipe: any diffusers text-to-image pipeline with a U-Net, of FLUX.1 or of Stable Diffusion 3.5, to
            which this adapter is not attached
        adapter: an adapter that fits it
        references: an image prompt, or several in a list; each is a `Reference` (with its own settings) or
            simply a picture: a file, a PIL picture or an array
        prompt: the text prompt; "" leaves everything to the image prompts
        negative_prompt: the text of what to avoid
        guidance_scale: w of classifier-free guidance; at most 1 turns guidance off. By default that of the
            speed, or the base's usual one: 3 on the embedded model, 3.5 on FLUX.1, 4.5 on Stable Diffusion
            3.5, 7.5 on others
        steps: denoising steps, by default those of the speed, or DEFAULT_STEPS
        seed: from 0 to 2**63 - 1, by default 0; the same seed gives the same picture on the same machine
        seeds: several seeds, in place of `seed`
        size: width and height in pixels, multiples of 8: (width, height), or one number for both; by default
            the base's own
        speed: "exact", or "balanced" or "fast", which choose sampler and steps; "lcm", "hyper", "lightning"
            or "turbo" for a base distilled for few steps; see `imprompt.generation.job.speeds`

    Raises:
        ConfigError: a setting of a wrong type, or that this base cannot honor
        AttachmentError, AdapterMismatch: see `ImagePromptAdapter.attach`
        InvalidReference, ImageError: see `ImagePromptAdapter.use`
        OutputError: a picture that the base's safety checker painted black, or that is not finite
    """
    if seed is not None and seeds is not None:
        raise ConfigError(f"seed={seed!r} and seeds={seeds!r} exclude each other; give one of them")
    chosen = _choose_by_speed(speed, guidance_scale, steps)
    chosen.setdefault("guidance_scale", find_usual_guidance(pipe))
    if (scheduler := chosen.pop("scheduler", None)) is not None:
        pipe = copy.copy(pipe)  # The caller's keeps its own scheduler.
        set_scheduler(pipe, scheduler)
    settings = Settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        size=(size, size) if isinstance(size, int) else size,
        **chosen,
    )
    seeds = [0 if seed is None else seed] if seeds is None else seeds
    return list(generate_each(pipe, [(adapter, references)], settings, seeds=seeds))


def _choose_by_speed(speed: str, guidance_scale: float | int | None, steps: int | None) -> dict[str, Any]:
    """Return a speed's settings, those that are given included."""
    given = {"guidance_scale": guidance_scale, "steps": steps}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        chosen = apply_speed({"speed": speed, **given})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {"steps": DEFAULT_STEPS} | chosen


def generate_each(
    pipe: DiffusionPipeline,
    prompted: AdapterReferences,
    settings: Settings,
    *,
    seeds: Sequence[int] = (0,),
    on_step: Callable[[], None] | None = None,
) -> Iterator[Image.Image]:
    """Generate pictures one after another, each when the iterator reaches it; settings are checked at once.

    Args:
        pipe: as for `generate`; for a picture to start from or a ControlNet, the matching diffusers pipeline
            is derived from it, with the same models
        prompted: adapters, and the references that each uses
        settings: all other settings
        seeds: see `generate`
        on_step: called after every denoising step

    Raises:
        ImpromptError: as `generate`; those about references come with the first picture.
    """
    for adapter, _ in prompted:
        _check_adapter(adapter)
    check_settings(pipe, settings, seeds)
    called = derive_pipeline(pipe, settings)
    parameters = inspect.signature(type(called).__call__).parameters
    arguments = build_prompt_arguments(pipe, settings) | build_call_arguments(pipe, settings)
    arguments |= build_guidance_arguments(
        pipe,
        called,
        negative_prompt=settings.negative_prompt,
        true_guidance_scale=settings.true_guidance_scale,
    )
    arguments |= build_step_arguments(called, settings, on_step)
    if "height" not in parameters:  # Image-to-image takes the size from the picture.
        del arguments["width"], arguments["height"]
    pictures = _generate_pictures(
        cast(Callable[..., Any], called), prompted, arguments, seeds, settings.feature_cache
    )
    return _describe_pictures(pictures, pipe, prompted, settings, seeds)


def _describe_pictures(
    pictures: Iterable[Image.Image],
    pipe: DiffusionPipeline,
    prompted: AdapterReferences,
    settings: Settings,
    seeds: Sequence[int],
) -> Iterator[Image.Image]:
    """Yield the pictures with their settings in `Image.info`."""
    arguments = [argument for _, references in prompted for argument in _list_arguments(references)]
    references = [to_reference(one) for argument in arguments for one in _list_arguments(argument)]
    for seed, picture in zip(seeds, pictures, strict=True):
        add_description(picture, pipe, references, settings, seed)
        yield picture


def _list_arguments(references: References) -> Sequence[Any]:
    """Return the arguments of `ImagePromptAdapter.use`: one image prompt becomes a list of one."""
    several = isinstance(references, Sequence) and not isinstance(references, str | bytes)
    return cast(Sequence[Any], references) if several else [references]


def _check_adapter(adapter: object) -> None:
    if not isinstance(adapter, ImagePromptAdapter):
        raise ConfigError(
            f"the adapter must be an ImagePromptAdapter, not {adapter!r:.80}; imprompt.load_adapter loads one"
        )


def _generate_pictures(
    call: Callable[..., Any],
    prompted: AdapterReferences,
    arguments: Mapping[str, Any],
    seeds: Sequence[int],
    feature_cache: int,
) -> Iterator[Image.Image]:
    with ExitStack() as attached:
        if feature_cache > 1:
            attached.enter_context(FeatureCache(call, feature_cache))
        for adapter, references in prompted:
            attached.enter_context(adapter.attach(call))
            attached.enter_context(adapter.use(*_list_arguments(references)))
        for seed in seeds:
            # On the CPU, so that a seed is the same noise on every device.
            generator = torch.Generator("cpu").manual_seed(seed)
            with report_four_input_channels(call):
                (picture,) = call_pipeline(call, {**arguments, "generator": generator}, seeds=[seed])
            yield _restore_unmasked(picture, arguments)


def _restore_unmasked(picture: Image.Image, arguments: Mapping[str, Any]) -> Image.Image:
    """Restore the original where the mask is black; the autoencoder would change it a little."""
    if "mask_image" not in arguments:
        return picture
    return Image.composite(picture, arguments["image"], arguments["mask_image"].convert("L"))
