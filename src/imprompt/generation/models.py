"""Load base models and ControlNets by name, and derive the pipeline that a generation needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from imprompt import mini
from imprompt.attention.diffusers_internals import copy_progress_bar
from imprompt.errors import ConfigError, UnknownModel
from imprompt.generation.base_parts import arrange_for_speed
from imprompt.generation.repository import fetch_base
from imprompt.generation.settings import Settings
from imprompt.generation.transformer_bases import find_transformer, is_flux
from imprompt.runtime.devices import choose_device
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.foreign_models import (
    explain_failure,
    ignore_own_deprecations,
    is_embedded,
    is_hub_id,
)
from imprompt.runtime.precision import DTYPES, choose_computation

_MINI = "mini"


def load_pipeline(
    name: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> DiffusionPipeline:
    """Load a base model as a diffusers text-to-image pipeline.

    Args:
        name: "mini" (the embedded model), "mini:STYLE" (the same, fine-tuned on one style of drawing),
            "mini:transformer" (the embedded transformer), a folder in diffusers' format, a hub id owner/name,
            or a single file (`.safetensors` or `.ckpt`) of Stable Diffusion 1.5, 2.x or SDXL in the layout of
            the original code
        device: by default the first GPU (cuda, xpu or mps), or the CPU if there is none
        dtype: number format; by default float16 on a GPU, bfloat16 there for a base with a transformer, which
            overflows in float16, and float32 on the CPU. "auto" is the same on a GPU; on the CPU it is the
            format and the layout in memory in which this machine computes fastest (docs/speed.md)
        variant: variant of the files in a folder or on the hub, such as "fp16"
        revision: branch, tag or commit of a repository on the hub

    Raises:
        UnknownModel: the model is not on this machine, and cannot be downloaded
        CheckpointError: a single file is damaged, or is another kind of file
        ConfigError: `variant` or `revision` for the embedded model or a single file, which have none
    """
    device = choose_device(device)
    if dtype != "auto":
        return _load_pipeline(name, device, dtype, variant, revision)
    if device.type != "cpu":
        return _load_pipeline(name, device, None, variant, revision)
    choice = choose_computation()
    pipe = _load_pipeline(name, device, DTYPES[choice.precision], variant, revision)
    arrange_for_speed(pipe, choice)
    return pipe


def _load_pipeline(
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
    variant: str | None,
    revision: str | None,
) -> DiffusionPipeline:
    chooses = dtype is None
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    is_file = find_name_fault(name) is None and Path(name).is_file()
    if is_embedded(name) or is_file:
        _refuse_options(name, variant=variant, revision=revision)
    if is_embedded(name):
        style = name.partition(":")[2] or None
        if style == mini.TRANSFORMER:
            return mini.transformer_pipeline(dtype=dtype).to(device)
        return mini.pipeline(style=style, dtype=dtype).to(device)
    if is_file:
        from imprompt.generation.single_file import load_single_file

        return load_single_file(name, dtype=dtype).to(device)
    _check_name("base model", name, "model_index.json")
    # It imports every pipeline of diffusers, which the embedded model does not need.
    from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image

    source: str | Path = name
    if not Path(name).exists():
        fetched = fetch_base(name, variant=variant, revision=revision, prefers_half=dtype == torch.float16)
        source, variant = (name, variant) if fetched is None else fetched
    if chooses and Path(source, "transformer").is_dir() and device.type != "cpu":
        dtype = torch.bfloat16
    with explain_failure(f"the base model {name} cannot be loaded"), ignore_own_deprecations():
        pipe = AutoPipelineForText2Image.from_pretrained(
            source, dtype=dtype, variant=variant, revision=revision
        )
        return pipe.to(device)


def _refuse_options(name: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise ConfigError(
                f"{option} {value!r} has no effect on the base {name}: leave it out; only folders and "
                "repositories of the hub have any"
            )


def load_controlnet(name: str, pipe: DiffusionPipeline) -> ControlNetModel:
    """Load a ControlNet for a base: "mini" (edges, for the embedded base), a folder or a hub id.

    Raises:
        UnknownModel: the ControlNet is not on this machine, and cannot be downloaded
    """
    if name == _MINI:
        embedded: Any = mini.controlnet(dtype=pipe.dtype)
        return embedded.to(pipe.device)
    _check_name("ControlNet", name, "config.json")
    with explain_failure(f"the ControlNet {name} cannot be loaded"):
        controlnet: Any = _find_controlnet_class(pipe).from_pretrained(name, torch_dtype=pipe.dtype)
    return controlnet.to(pipe.device)


def _find_controlnet_class(pipe: DiffusionPipeline) -> Any:
    if find_transformer(pipe) is None:
        return ControlNetModel
    # Imported late, as few bases need them.
    from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
    from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel

    return FluxControlNetModel if is_flux(pipe) else SD3ControlNetModel


def make_control_image(picture: Image.Image, model: str) -> Image.Image:
    """Return a ControlNet's input: the edges of a picture for "mini", otherwise the picture itself."""
    return mini.edge_picture(picture) if model == _MINI else picture


def derive_pipeline(pipe: DiffusionPipeline, settings: Settings) -> DiffusionPipeline:
    """Return the pipeline of the same base for these settings; it shares all models with `pipe`.

    Raises:
        ConfigError: diffusers has no such pipeline for this base, or a ControlNet does not fit it
    """
    if settings.init_image is None and not settings.controls:
        return pipe
    kind, what = _choose_pipeline(settings)
    models = [control.model for control in settings.controls]
    controlnet: dict[str, Any] = {"controlnet": models if len(models) > 1 else models[0]} if models else {}
    _check_controls(pipe, models)
    try:
        result = kind.from_pipe(pipe, **controlnet)
    except ValueError as error:
        raise ConfigError(f"diffusers has no pipeline of {type(pipe).__name__} for {what}") from error
    copy_progress_bar(pipe, result)
    return result


def _choose_pipeline(settings: Settings) -> tuple[Any, str]:
    from diffusers.pipelines import auto_pipeline  # imported late as in load_pipeline

    with_control = " with a ControlNet" if settings.controls else ""
    if settings.init_image is None:
        return auto_pipeline.AutoPipelineForText2Image, f"text-to-image{with_control}"
    if settings.inpaint is None:
        return auto_pipeline.AutoPipelineForImage2Image, f"image-to-image{with_control}"
    return auto_pipeline.AutoPipelineForInpainting, f"inpainting{with_control}"


def _check_controls(pipe: Any, models: Sequence[ControlNetModel]) -> None:
    """Refuse a ControlNet whose inputs or blocks differ from those of the base's denoiser."""
    transformer = find_transformer(pipe)
    keys = ("block_out_channels", "cross_attention_dim", "in_channels")
    if transformer is not None:
        keys = ("joint_attention_dim", "attention_head_dim", "num_attention_heads", "in_channels")
    for model in models:
        for key in keys:
            denoiser = pipe.unet if transformer is None else transformer
            its, base = getattr(model.config, key, None), getattr(denoiser.config, key)
            if its != base:
                raise ConfigError(
                    f"this ControlNet is for another base: its {key} is {its}, the base's {base}"
                )


def _check_name(kind: str, name: str, index: str) -> None:
    if fault := find_name_fault(name):
        raise UnknownModel(f"no {kind} {shorten(name)!r}: {fault}")
    path = Path(name)
    if path.is_dir() and not (path / index).is_file():
        raise UnknownModel(f"{name} is a folder without {index}, so no model in diffusers' format")
    if path.is_file():
        raise UnknownModel(f"{name} is a file; a {kind} is a folder in diffusers' format")
    if not path.exists() and not is_hub_id(name):
        raise UnknownModel(f"no {kind} {name!r}: no such folder, nor 'mini', nor a hub id (owner/name)")
