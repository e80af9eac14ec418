"""What a generated picture says about itself: the settings of imprompt, and the parameters of A1111's web UI.

The web UI, its descendants, galleries and ComfyUI's loaders read these parameters:

    a cat with a hat
    Negative prompt: rain
    Steps: 25, Sampler: DDIM, CFG scale: 7.5, Seed: 0, Size: 512x512, Model: sd15, Version: imprompt 0.1.0
"""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.generation.job import list_versions
from imprompt.generation.settings import Settings
from imprompt.reference import Reference, list_pictures
from imprompt.runtime.picture_files import PARAMETERS_KEY, SETTINGS_KEY

IN_MEMORY = "(in memory)"
"""Stands for a picture, a mask or a model without a file, which no setting can name."""

_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}
"""Scheduler of diffusers → name in the web UI (diffusers' documentation, "Schedulers")."""

_MODEL_SUFFIXES = (".safetensors", ".ckpt")


def add_description(
    picture: Image.Image, pipe: Any, references: Sequence[Reference], settings: Settings, seed: int
) -> None:
    """Put settings and parameters into `picture.info`, from which `imprompt.save_picture` writes them.

    Args:
        picture: the generated picture
        pipe: the pipeline of the base
        references: those of all adapters
        settings: the settings of the generation
        seed: the seed of the picture
    """
    described = _describe(pipe, references, settings, seed, picture.size)
    picture.info[SETTINGS_KEY] = json.dumps(described)
    picture.info[PARAMETERS_KEY] = _format_parameters(pipe, settings, seed, picture.size)


def name_base(pipe: Any) -> str:
    """Return the name of a pipeline's base without folders: "mini", "stable-diffusion-v1-5", ...

    A pipeline that was built from its parts has no name; then it is IN_MEMORY.
    """
    name = str(getattr(pipe.config, "_name_or_path", None) or IN_MEMORY)
    last = Path(name).name
    return next((last.removesuffix(end) for end in _MODEL_SUFFIXES if last.endswith(end)), last)


def _describe(
    pipe: Any, references: Sequence[Reference], settings: Settings, seed: int, size: tuple[int, int]
) -> dict[str, Any]:
    """Return settings under the names that a job has; what has no file is IN_MEMORY.

    The adapter always is, because it does not know the file from which it was loaded.
    """
    described: dict[str, Any] = {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "base": name_base(pipe),
        "adapter": IN_MEMORY,
        "guidance_scale": float(settings.guidance_scale),
        "steps": int(settings.steps),
        "seed": int(seed),
        "width": size[0],
        "height": size[1],
    }
    if settings.true_guidance_scale != 1:
        described["true_guidance_scale"] = float(settings.true_guidance_scale)
    if settings.guidance_interval != (0, 1):
        described["guidance_interval"] = list(settings.guidance_interval)
    if settings.feature_cache != 1:
        described["feature_cache"] = int(settings.feature_cache)
    if settings.init_image is not None:
        described |= {"init_image": IN_MEMORY, "strength": settings.effective_strength}
    if settings.inpaint is not None:
        described["inpaint"] = IN_MEMORY
    controls = [{"image": IN_MEMORY, "model": IN_MEMORY, "scale": c.scale} for c in settings.controls]
    described |= {"controls": controls} if controls else {}
    return described | {
        "references": [_describe_reference(reference) for reference in references],
        "versions": list_versions(),
    }


def _format_parameters(pipe: Any, settings: Settings, seed: int, size: tuple[int, int]) -> str:
    """Return the parameters of a picture as A1111's web UI writes them."""
    strength = {} if settings.init_image is None else {"Denoising strength": settings.effective_strength}
    values = {
        "Steps": settings.steps,
        "Sampler": _name_sampler(pipe.scheduler),
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": name_base(pipe),
        **strength,
        "Version": f"imprompt {importlib.metadata.version('imprompt')}",
    }
    negative = [f"Negative prompt: {settings.negative_prompt}"] if settings.negative_prompt else []
    last = ", ".join(f"{name}: {_quote(str(value))}" for name, value in values.items())
    return "\n".join([settings.prompt, *negative, last])


def _describe_reference(reference: Reference) -> dict[str, Any]:
    """Return the settings of a reference that are not their defaults, and the names of its pictures."""
    described: dict[str, Any] = {
        "images": [_name_picture(picture) for picture in reference.pictures] or [IN_MEMORY],
        "scale": float(reference.scale),
    }
    if reference.negative is not None:
        negatives = list_pictures(reference.negative)
        described["negative"] = [_name_picture(picture) for picture in negatives] or [IN_MEMORY]
    for field in dataclasses.fields(reference):
        value = getattr(reference, field.name)
        if field.name not in described and value is not field.default and value != field.default:
            described[field.name] = _describe_value(value)
    return described


def _describe_value(value: object) -> Any:
    """Return a value that JSON can represent; pictures and tensors are IN_MEMORY."""
    if isinstance(value, str | bool):
        return value
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _describe_value(factor) for key, factor in value.items()}
    return [_describe_value(one) for one in value] if isinstance(value, list | tuple) else IN_MEMORY


def _name_picture(picture: object) -> str:
    """Return the name of a picture's file without its folder, so that no folder of the disk is revealed."""
    path = picture if isinstance(picture, str | os.PathLike) else getattr(picture, "filename", None)
    return Path(path).name if path else IN_MEMORY


def _name_sampler(scheduler: Any) -> str:
    kind = type(scheduler).__name__
    return _SAMPLERS.get(kind, kind.removesuffix("Scheduler"))


def _quote(value: str) -> str:
    """Quote a value that contains a separator, as the web UI does."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value
