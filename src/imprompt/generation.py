"""Prompts and image prompts → pictures, on any diffusers pipeline; pictures carry their settings.

Pictures are made one at a time, each from a generator of its own: a seed gives the same picture to the bit,
alone or as one of many, which no batch can promise (the order of sums in a matrix product depends on the
batch).
"""

import copy
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from imprompt.adapter import ImagePromptAdapter
from imprompt.encoding import ReferenceLike
from imprompt.errors import ConfigError, ImageError, UnknownModel
from imprompt.output import check_output, written_whole

DEFAULT_STEPS = 25
"""Enough for DDIM and its kin on every base we know; diffusers' own default is 50."""

SETTINGS_KEY = "imprompt"
"""Name of the PNG text chunk that holds a picture's settings, as JSON."""

_EMBEDDED = {"mini": ("imprompt.mini", "pipeline")}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_SEED = 2**63 - 1

References = Sequence[ReferenceLike | list[ReferenceLike]]
"""Image prompts that act together; see `ImagePromptAdapter.references`."""


def load_base(name: str) -> DiffusionPipeline:
    """Load a base model: "mini" (the embedded one), a folder in diffusers' format, or a hub id owner/name.

    It comes on the first GPU in float16 if there is one, else on the CPU in float32.

    Raises:
        UnknownModel: there is no such model here, and it cannot be fetched.
    """
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    if name in _EMBEDDED:
        module, function = _EMBEDDED[name]
        return getattr(importlib.import_module(module), function)(dtype=dtype).to(device)
    _check_base(name)
    try:
        return AutoPipelineForText2Image.from_pretrained(name, dtype=dtype).to(device)
    except Exception as error:  # foreign folders and a network: this may fail in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownModel(f"the base model {name} cannot be loaded: {reason}") from error


def generate(
    pipe: DiffusionPipeline,
    adapter: ImagePromptAdapter,
    references: References,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    guidance_scale: float = 7.5,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    size: int | None = None,
) -> list[Image.Image]:
    """Make one picture for each seed, from all references acting together, and leave the pipeline as it was.

    Args:
        pipe: any diffusers text-to-image pipeline with a U-Net, to which this adapter is not attached
        adapter: an adapter that fits it
        references: image prompts; each is a `Reference` (with its own scale) or simply a picture
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
    """
    each = generate_each(
        pipe,
        adapter,
        references,
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        steps=steps,
        seeds=seeds,
        size=size,
    )
    return list(each)


def generate_each(
    pipe: DiffusionPipeline,
    adapter: ImagePromptAdapter,
    references: References,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    guidance_scale: float = 7.5,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    size: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> Iterator[Image.Image]:
    """As `generate`, but give each picture as soon as it is made; `on_step` is called after each step.

    The adapter stays attached until the last picture has been taken.
    """
    steps = DEFAULT_STEPS if steps is None else steps
    _check_settings(pipe, guidance_scale, steps, seeds, size)
    settings = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "guidance_scale": guidance_scale,
        "num_inference_steps": steps,
        **({} if size is None else {"height": size, "width": size}),
        **({} if on_step is None else {"callback_on_step_end": _after_step(on_step)}),
    }
    return _pictures(cast(Callable[..., Any], pipe), adapter, references, seeds, settings)


def save_picture(picture: Image.Image, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write a picture as PNG, with its settings inside; the file appears whole or not at all.

    Args:
        picture: what to write
        path: its name must end in .png
        settings: values that JSON can hold; `read_settings` gives them back

    Raises:
        OutputError: another suffix, a missing folder, a full disk
    """
    path = Path(path)
    check_output(path, ".png")
    text = PngInfo()
    text.add_text(SETTINGS_KEY, json.dumps(settings))
    with written_whole(path) as part:
        picture.save(part, format="PNG", pnginfo=text)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that `save_picture` wrote into a picture.

    Raises:
        ImageError: no such picture, or one that was not written by imprompt
    """
    try:
        with PngImageFile(Path(path)) as picture:  # pyright: ignore[reportArgumentType]
            settings = json.loads(picture.info[SETTINGS_KEY])
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # a hostile file may make a decoder fail in any way
        raise ImageError(f"{path} holds no settings of imprompt") from error
    if not isinstance(settings, dict):
        raise ImageError(f"{path} holds no settings of imprompt")
    return settings


def _pictures(
    call: Callable[..., Any],
    adapter: ImagePromptAdapter,
    references: References,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> Iterator[Image.Image]:
    with adapter.attach(call), adapter.references(*references):
        for seed in seeds:
            # On the CPU, so that a seed means the same noise on every device.
            yield call(**settings, generator=torch.Generator("cpu").manual_seed(seed)).images[0]


def _after_step(on_step: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    def callback(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    return callback


def _check_settings(
    pipe: DiffusionPipeline, guidance_scale: float, steps: int, seeds: Sequence[int], size: int | None
) -> None:
    if not math.isfinite(guidance_scale):
        raise ConfigError(f"guidance_scale must be a finite number, not {guidance_scale}")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, not {steps}")
    _check_schedule(getattr(pipe, "scheduler"), steps)  # noqa: B009
    for seed in seeds:
        if not 0 <= seed <= _MAX_SEED:
            raise ConfigError(f"a seed must be 0 to {_MAX_SEED}, not {seed}")
    unit = math.lcm(8, getattr(pipe, "vae_scale_factor", 8))
    if size is not None and (size < unit or size % unit):
        raise ConfigError(f"size must be a multiple of {unit} pixels on this base, not {size}")


def _check_schedule(scheduler: Any, steps: int) -> None:
    """Try the steps out on a copy: some schedulers refuse too many, some would fail at the first step."""
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(steps)
        fits = float(trial.timesteps.max()) < trial.config.num_train_timesteps
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{steps} steps are too many for this base's scheduler, {type(scheduler).__name__}")


def _check_base(name: str) -> None:
    path = Path(name)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise UnknownModel(f"{name} is a folder without model_index.json, so no model in diffusers' format")
    if path.is_file():
        raise UnknownModel(f"{name} is a file; a base model is a folder in diffusers' format")
    if not path.exists() and not _HUB_ID.fullmatch(name):
        raise UnknownModel(f"no base model {name!r}: no such folder, nor 'mini', nor a hub id (owner/name)")
