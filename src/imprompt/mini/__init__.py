"""The embedded model: a miniature text-to-image model and its image-prompt adapters, inside this package.

It draws characters of 128 × 128 px. It is a pipeline of diffusers, so code for Stable Diffusion works on it.
There are also a fine-tuned base (`pipeline(style="lines")`) and a ControlNet on edges (`controlnet()`).
recipes/mini-*.toml make the model; weights/README.md is its model card.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from imprompt.checkpoint import EMBEDDED_WEIGHTS, find_embedded_part, load_embedded_adapter
from imprompt.errors import MissingExtra, UnknownModel
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.mini.edges import edge_picture
from imprompt.mini.inpainting import InpaintPipeline
from imprompt.mini.tokenizer import BoundedTokenizer

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

__all__ = [
    "SIZE",
    "TRANSFORMER",
    "WEIGHTS",
    "InpaintPipeline",
    "PatchAutoencoder",
    "adapter",
    "as_pipeline",
    "assemble",
    "assemble_transformer",
    "controlnet",
    "edge_picture",
    "find_part",
    "pipeline",
    "transformer_pipeline",
]

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)

WEIGHTS = EMBEDDED_WEIGHTS

SIZE = 128
"""The height and width of the model's pictures in pixels."""

TRANSFORMER = "transformer"
"""The name of the embedded transformer, as a base "mini:transformer" and as a folder."""

adapter = load_embedded_adapter


def pipeline(
    *, style: str | None = None, weights: Path = WEIGHTS, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Load the embedded base model as diffusers' text-to-image pipeline, 128 × 128 px, on the CPU.

    Args:
        style: name of a fine-tuned style, "lines"; all styles share the adapters
        weights: a folder written by `imprompt mini train`
        dtype: number format of the computation; the files hold float16

    Raises:
        UnknownModel: the weights are missing, or there is no such style
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
    # Under this key diffusers keeps the name from which a pipeline was loaded; pictures state it.
    pipe.register_to_config(_name_or_path="mini" if style is None else f"mini:{style}")
    return pipe


def transformer_pipeline(*, weights: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> "FluxPipeline":
    """Load the embedded transformer as diffusers' pipeline of FLUX.1, 128 × 128 px, on the CPU.

    It is on the embedded base's autoencoder and text encoder. Its guidance is true guidance: give a negative
    prompt, which may be empty, and `true_cfg_scale`.

    Args:
        weights: a folder written by `imprompt mini train transformer`; none is shipped yet
        dtype: number format of the computation

    Raises:
        UnknownModel: the weights are missing
    """
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    folder = find_embedded_part(weights / TRANSFORMER)
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    return assemble_transformer(
        cast(PatchAutoencoder, PatchAutoencoder.from_pretrained(folder / "vae", torch_dtype=dtype)),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        BoundedTokenizer.from_pretrained(folder / "tokenizer"),
        cast("FluxTransformer2DModel", transformer),
    )


def find_part(weights: Path, name: str) -> Path:
    """Return the folder of a part of a model under construction, or the embedded model's, where it has none.

    Args:
        weights: a folder written by `imprompt mini train`
        name: "base", "image_encoder", "judge", ...

    Raises:
        UnknownModel: neither has the part
    """
    own = weights / name
    return own if own.is_dir() else find_embedded_part(WEIGHTS / name)


def as_pipeline(kind: type[Pipeline], pipe: DiffusionPipeline, **parts: Any) -> Pipeline:
    """Build another of diffusers' pipelines of the embedded model's parts; the two share all weights.

    diffusers' own `kind.from_pipe(pipe)` drops the autoencoder, whose class it does not know.

    Args:
        kind: `StableDiffusionImg2ImgPipeline`, `InpaintPipeline`, ...
        pipe: the pipeline of the embedded model
        **parts: further parts that the pipeline needs, for instance a `controlnet`
    """
    build = cast(Any, kind)
    built: Pipeline = build(**(pipe.components | parts), requires_safety_checker=False)
    built.set_progress_bar_config(disable=True)
    return built


def fine_tune(pipe: StableDiffusionPipeline, style: str, weights: Path = WEIGHTS) -> None:
    """Fuse the LoRA of a style into the U-Net's weights; no layer of peft remains.

    Raises:
        UnknownModel: there is no such style
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
    """Load the embedded model's ControlNet on edges, for diffusers' ControlNet pipelines.

        kind = StableDiffusionControlNetPipeline
        pipe = mini.as_pipeline(kind, mini.pipeline(), controlnet=mini.controlnet())
        pipe("pink hair", image=mini.edge_picture(picture))

    Raises:
        UnknownModel: the weights are missing
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
    """Build diffusers' text-to-image pipeline of the parts, without progress bar and safety checker."""
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


def assemble_transformer(
    autoencoder: PatchAutoencoder,
    text_encoder: CLIPTextModel,
    tokenizer: BoundedTokenizer,
    transformer: "FluxTransformer2DModel",
) -> "FluxPipeline":
    """Build diffusers' pipeline of FLUX.1 of the parts, without progress bar.

    The one text encoder stands for FLUX.1's two: it gives the sequence and the pooled vector.

    Args:
        autoencoder: one whose latents are split 2 × 2, as the pipeline packs them
        text_encoder, tokenizer, transformer: the other parts
    """
    # Imported late: it imports T5, which the rest of the embedded model does not need.
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,  # type: ignore[arg-type]
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder,  # type: ignore[arg-type]
        tokenizer_2=tokenizer,  # type: ignore[arg-type]
        transformer=transformer,
    )
    pipe.default_sample_size = SIZE // pipe.vae_scale_factor
    pipe.set_progress_bar_config(disable=True)
    return pipe
