"""The embedded model: a text-to-image model in miniature, and its image-prompt adapters, in this package.

128 × 128 px characters; diffusers' own pipeline, so everything written for Stable Diffusion works on it. With
it come a fine-tuned base (`pipeline(style="lines")`) and a ControlNet on edges (`controlnet()`). How all was
made: recipes/mini-*.toml; what it is and is not: weights/README.md.
"""

import importlib.util
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from imprompt.checkpoint import EMBEDDED_WEIGHTS, find_embedded_part, load_embedded_adapter
from imprompt.errors import MissingExtra, UnknownModel
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.mini.edges import edge_picture
from imprompt.mini.inpainting import InpaintPipeline

__all__ = [
    "WEIGHTS",
    "InpaintPipeline",
    "PatchAutoencoder",
    "adapter",
    "as_pipeline",
    "assemble",
    "controlnet",
    "edge_picture",
    "pipeline",
]

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)

WEIGHTS = EMBEDDED_WEIGHTS

adapter = load_embedded_adapter


def pipeline(
    *, style: str | None = None, weights: Path = WEIGHTS, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """The embedded base model as diffusers' text-to-image pipeline, 128 × 128 px, on the CPU.

    Args:
        style: the base as fine-tuned on one style, "lines"; the adapter is the same for all of them
        weights: a folder as `imprompt mini train` makes it
        dtype: number format to compute in; the files hold float16

    Raises:
        UnknownModel: the weights are not there, or not that style
        MissingExtra: a style needs peft
    """
    base = find_embedded_part(weights / "base")
    pipe = assemble(
        cast(PatchAutoencoder, PatchAutoencoder.from_pretrained(base / "vae", torch_dtype=dtype)),
        CLIPTextModel.from_pretrained(base / "text_encoder", dtype=dtype),
        CLIPTokenizer.from_pretrained(base / "tokenizer"),
        cast(UNet2DConditionModel, UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=dtype)),
        cast(DDIMScheduler, DDIMScheduler.from_pretrained(base / "scheduler")),
    )
    if style is not None:
        fine_tune(pipe, style, weights)
    return pipe


def as_pipeline(kind: type[Pipeline], pipe: DiffusionPipeline, **parts: Any) -> Pipeline:
    """The embedded model's parts as another of diffusers' pipelines; they share all weights.

    diffusers' own `kind.from_pipe(pipe)` leaves out our autoencoder, a class that it does not know.

    Args:
        kind: `StableDiffusionImg2ImgPipeline`, `InpaintPipeline`, ...
        pipe: where the parts are
        **parts: what it needs beside them, a `controlnet` for instance
    """
    build = cast(Any, kind)
    made: Pipeline = build(**(pipe.components | parts), requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def fine_tune(pipe: StableDiffusionPipeline, style: str, weights: Path = WEIGHTS) -> None:
    """Add a style's low-rank changes to the U-Net's weights for good; nothing of peft stays on it.

    Raises:
        UnknownModel: no such style
        MissingExtra: peft is not installed
    """
    known = sorted(folder.name for folder in weights.glob("styles/*") if folder.is_dir())
    if style not in known:
        raise UnknownModel(f"there is no style {style!r}; the styles are: {', '.join(known) or 'none'}")
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("peft", "train")
    unet: Any = pipe.unet
    unet.load_lora_adapter(
        weights / "styles" / style, weight_name="pytorch_lora_weights.safetensors", prefix="unet"
    )
    unet.fuse_lora()
    unet.unload_lora()


def controlnet(*, weights: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """The embedded model's ControlNet on edges, for diffusers' ControlNet pipelines.

        kind = StableDiffusionControlNetPipeline
        pipe = mini.as_pipeline(kind, mini.pipeline(), controlnet=mini.controlnet())
        pipe("pink hair", image=mini.edge_picture(picture))

    Raises:
        UnknownModel: the weights are not there
    """
    folder = find_embedded_part(weights / "control")
    return cast(ControlNetModel, ControlNetModel.from_pretrained(folder, torch_dtype=dtype))


def assemble(
    autoencoder: PatchAutoencoder,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> StableDiffusionPipeline:
    """Put the parts together as diffusers' text-to-image pipeline, quiet and without a safety checker."""
    pipe = StableDiffusionPipeline(
        vae=autoencoder,  # type: ignore[arg-type]
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
