"""Tiny random pipelines of every kind that diffusers has for a U-Net with text.

`CASES` lists them. Pipelines of one base share its autoencoder and encoders, and the U-Net too where
theirs is the same. However a pipeline is called, `case.latents(pipe, ...)` calls it.
"""

import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from PIL import Image
from torch import Tensor

import tiny
from imprompt.attention.diffusers_internals import Branches
from tiny_bases import FRAMES, Base, base_parts, base_scheduler, base_unet, controlnet, numbers, t2i_adapter

STEPS = 2

GUIDED: Branches = ("negative", "positive")
POSITIVE: Branches = ("positive",)


@dataclass(frozen=True, eq=False)
class Case:
    """One pipeline on one base: how it is made and called, and what it makes of a batch.

    Args:
        title: what people call it
        kind: the name of diffusers' class
        base: the base model
        own: makes the components beside the base's, for a U-Net
        unet: options of the U-Net that are not the base's
        call: arguments that every call needs
        guided: how it stacks its batch with guidance
        unguided: and without; None where there is no guidance to switch off
        frames: of a video, each a row of the U-Net's attention; 1 for pictures
        halved: what a callback cuts down when it stops guidance part-way; empty where none can
        theirs: what diffusers' own adapter takes here; None where there is none
        tells: whether the pipeline tells how it stacks its batch; where not, `references` is told
        prompts: whether it takes several
        listed: arguments that are a list, one for each prompt; else the first prompt's seed serves all
    """

    title: str
    kind: str
    base: Base = "SD1.5"
    own: Callable[[Any], Mapping[str, Any]] = lambda unet: {}
    unet: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    guided: Branches = GUIDED
    unguided: Branches | None = POSITIVE
    frames: int = 1
    halved: tuple[str, ...] = ("prompt_embeds",)
    theirs: Literal["embeddings", "pictures"] | None = "embeddings"
    tells: bool = True
    prompts: bool = True
    listed: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.base}, {self.title}"

    def build(self) -> Any:
        """Make the pipeline."""
        kind = kind_of(self.kind)
        unet = base_unet(self.base, self.frames > 1, **self.unet)
        parts = base_parts(self.base) | {"unet": unet, "scheduler": base_scheduler(self.base)}
        parts |= dict(self.own(unet))
        wanted = inspect.signature(kind.__init__).parameters
        pipe = kind(**{name: part for name, part in parts.items() if name in wanted})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def latents(
        self, pipe: Any, prompts: Sequence[str] = ("a cat",), each: int = 1, **changes: Any
    ) -> Tensor:
        """Call it: of every prompt `each` pictures, or a video, from seeds 0, 1, 2, ... or those given."""
        seeds = changes.pop("seeds", range(len(prompts) * each))
        arguments = {"guidance_scale": 2.0, "num_inference_steps": STEPS, "output_type": "latent"}
        arguments |= {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
        arguments |= {"num_images_per_prompt": each} if each > 1 else {}
        arguments |= {"prompt": list(prompts)} | dict(self.call) | changes
        arguments |= {name: [arguments[name]] * len(prompts) for name in self.listed}
        with _processors_put_back(pipe.unet):
            result = pipe(**arguments)
        return result.frames if self.frames > 1 else result.images


@contextmanager
def _processors_put_back(unet: Any) -> Iterator[None]:
    """Some of diffusers' PAG pipelines leave theirs behind where latents are asked for."""
    before = unet.attn_processors
    try:
        yield
    finally:
        for name, processor in before.items():
            unet.get_submodule(name.removesuffix(".processor")).processor = processor


def kind_of(name: str) -> Any:
    """A class of diffusers. Kolors's want sentencepiece for a tokenizer that never runs here."""
    if "Kolors" not in name:
        return getattr(diffusers, name)
    suffix = "_img2img" if "Img2Img" in name else ""
    module = "pag.pipeline_pag_kolors" if "PAG" in name else f"kolors.pipeline_kolors{suffix}"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' text model scripts a function
        patch.setitem(sys.modules, "sentencepiece", types.SimpleNamespace(SentencePieceProcessor=None))
        return getattr(importlib.import_module(f"diffusers.pipelines.{module}"), name)


def build_controlnet(unet: Any) -> dict[str, Any]:
    return {"controlnet": controlnet(unet)}


def build_two_controlnets(unet: Any) -> dict[str, Any]:
    return {"controlnet": [controlnet(unet), controlnet(unet, seed=5)]}


def with_lcm_scheduler(unet: Any) -> dict[str, Any]:
    """With little noise: each step divides by √ᾱ, which would magnify rounding more than tenfold."""
    milder = {"original_inference_steps": 10, "beta_end": 0.004}
    return {"scheduler": LCMScheduler.from_config(tiny.scheduler().config, **milder)}


def with_t2i_adapter(unet: Any) -> dict[str, Any]:
    return {"adapter": t2i_adapter(unet)}


# The list

SIZE = 16
PICTURE, CONTROL, OTHER_CONTROL = (tiny.picture(seed=seed, width=SIZE, height=SIZE) for seed in (7, 8, 9))
HALF = Image.new("L", (SIZE, SIZE))
HALF.paste(255, (0, 0, 9, SIZE))

FROM_PICTURE = {"image": PICTURE, "strength": 0.9, "num_inference_steps": 3}
INPAINT = {"image": PICTURE, "mask_image": HALF, "strength": 1.0}
INPAINTED = ("image", "mask_image")
MASKS = ("prompt_embeds", "mask", "masked_image_latents")
XL_TEXT = ("prompt_embeds", "add_text_embeds", "add_time_ids")
NINE, LCM = {"in_channels": 9}, {"time_cond_proj_dim": 8}


def pag(title: str, kind: str, **options: Any) -> Case:
    """Perturbed-attention guidance repeats the positive rows; no callback can stop either guidance."""
    stacks = {"guided": (*GUIDED, "positive"), "unguided": ("positive", "positive")}
    call = {"pag_scale": 1.0} | options.pop("call", {})
    return Case(title, kind, **stacks, call=call, halved=(), **options)


SD = [
    Case("text-to-image", "StableDiffusionPipeline"),
    Case("image-to-image", "StableDiffusionImg2ImgPipeline", call=FROM_PICTURE),
    Case(
        "inpainting, 4 channels",
        "StableDiffusionInpaintPipeline",
        call=INPAINT,
        listed=INPAINTED,
        halved=MASKS,
    ),
    Case(
        "inpainting, 9 channels",
        "StableDiffusionInpaintPipeline",
        call=INPAINT,
        listed=INPAINTED,
        halved=MASKS,
        unet=NINE,
    ),
    Case(
        "ControlNet",
        "StableDiffusionControlNetPipeline",
        own=build_controlnet,
        call={"image": CONTROL},
        halved=("prompt_embeds", "image"),
    ),
    Case(
        "ControlNet, image-to-image",
        "StableDiffusionControlNetImg2ImgPipeline",
        own=build_controlnet,
        call=FROM_PICTURE | {"control_image": CONTROL},
        halved=("prompt_embeds", "control_image"),
    ),
    Case(
        "ControlNet, inpainting",
        "StableDiffusionControlNetInpaintPipeline",
        own=build_controlnet,
        call=INPAINT | {"control_image": CONTROL},
        listed=INPAINTED,
        halved=(*MASKS, "control_image"),
    ),
    Case(
        "several ControlNets",
        "StableDiffusionControlNetPipeline",
        own=build_two_controlnets,
        call={"image": [CONTROL, OTHER_CONTROL], "controlnet_conditioning_scale": [0.7, 0.4]},
        halved=("prompt_embeds", "image"),
    ),
    Case(
        "T2I-Adapter",
        "StableDiffusionAdapterPipeline",
        own=with_t2i_adapter,
        call={"image": CONTROL},
        listed=("image",),
        halved=(),
        theirs=None,
    ),
    Case(
        "LCM",
        "LatentConsistencyModelPipeline",
        own=with_lcm_scheduler,
        unet=LCM,
        guided=POSITIVE,
        unguided=None,
        halved=(),
    ),
    Case(
        "LCM, image-to-image",
        "LatentConsistencyModelImg2ImgPipeline",
        own=with_lcm_scheduler,
        unet=LCM,
        call={"image": PICTURE, "strength": 0.9},
        guided=POSITIVE,
        unguided=None,
        halved=(),
    ),
    pag("PAG", "StableDiffusionPAGPipeline"),
    pag("PAG, image-to-image", "StableDiffusionPAGImg2ImgPipeline", call=FROM_PICTURE),
    pag("PAG, inpainting", "StableDiffusionPAGInpaintPipeline", call=INPAINT, listed=INPAINTED),
    pag(
        "PAG, ControlNet",
        "StableDiffusionControlNetPAGPipeline",
        own=build_controlnet,
        call={"image": CONTROL},
    ),
    pag(
        "PAG, ControlNet, inpainting",
        "StableDiffusionControlNetPAGInpaintPipeline",
        own=build_controlnet,
        call=INPAINT | {"control_image": CONTROL},
        listed=INPAINTED,
    ),
    Case(
        "InstructPix2Pix",
        "StableDiffusionInstructPix2PixPipeline",
        unet={"in_channels": 8},
        call={"image": PICTURE},
        guided=("positive", "negative", "negative"),
        halved=("prompt_embeds", "image_latents"),
        theirs="pictures",
    ),
]

DEPTH = Case(
    "depth-to-image",
    "StableDiffusionDepth2ImgPipeline",
    "SD2.x",
    unet={"in_channels": 5},
    call=FROM_PICTURE | {"depth_map": numbers(1, SIZE, SIZE)},
    halved=("prompt_embeds", "depth_mask"),
    theirs=None,
)

VIDEO = [
    Case("AnimateDiff", "AnimateDiffPipeline", call={"num_frames": FRAMES}, frames=FRAMES),
    Case(
        "AnimateDiff, video-to-video",
        "AnimateDiffVideoToVideoPipeline",
        call={"video": [PICTURE, CONTROL, OTHER_CONTROL], "strength": 0.9, "num_inference_steps": 3},
        frames=FRAMES,
        prompts=False,
    ),
    Case(
        "AnimateDiff, ControlNet",
        "AnimateDiffControlNetPipeline",
        own=build_controlnet,
        call={"num_frames": FRAMES, "conditioning_frames": [PICTURE, CONTROL, OTHER_CONTROL]},
        frames=FRAMES,
        halved=(),
        prompts=False,
    ),
    pag("AnimateDiff, PAG", "AnimateDiffPAGPipeline", call={"num_frames": FRAMES}, frames=FRAMES),
]

XL = [
    Case("text-to-image", "StableDiffusionXLPipeline"),
    Case("image-to-image", "StableDiffusionXLImg2ImgPipeline", call=FROM_PICTURE),
    Case(
        "inpainting, 4 channels",
        "StableDiffusionXLInpaintPipeline",
        call=INPAINT,
        listed=INPAINTED,
        halved=MASKS,
    ),
    Case(
        "inpainting, 9 channels",
        "StableDiffusionXLInpaintPipeline",
        call=INPAINT,
        listed=INPAINTED,
        halved=MASKS,
        unet=NINE,
    ),
    Case(
        "ControlNet",
        "StableDiffusionXLControlNetPipeline",
        own=build_controlnet,
        call={"image": CONTROL},
        halved=("prompt_embeds", "image"),
    ),
    Case(
        "ControlNet, image-to-image",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        own=build_controlnet,
        call=FROM_PICTURE | {"control_image": CONTROL},
        halved=("prompt_embeds", "control_image"),
    ),
    Case(
        "ControlNet, inpainting",
        "StableDiffusionXLControlNetInpaintPipeline",
        own=build_controlnet,
        call=INPAINT | {"control_image": CONTROL},
        listed=INPAINTED,
        halved=(),
    ),
    Case(
        "several ControlNets",
        "StableDiffusionXLControlNetPipeline",
        own=build_two_controlnets,
        call={"image": [CONTROL, OTHER_CONTROL], "controlnet_conditioning_scale": [0.7, 0.4]},
        halved=("prompt_embeds", "image"),
    ),
    Case(
        "T2I-Adapter",
        "StableDiffusionXLAdapterPipeline",
        own=with_t2i_adapter,
        call={"image": CONTROL},
        listed=("image",),
        halved=(),
    ),
    Case(
        "LCM",
        "StableDiffusionXLPipeline",
        own=with_lcm_scheduler,
        unet=LCM,
        guided=POSITIVE,
        unguided=None,
        halved=(),
    ),
    pag("PAG", "StableDiffusionXLPAGPipeline"),
    pag("PAG, image-to-image", "StableDiffusionXLPAGImg2ImgPipeline", call=FROM_PICTURE),
    pag("PAG, inpainting", "StableDiffusionXLPAGInpaintPipeline", call=INPAINT, listed=INPAINTED),
    pag(
        "PAG, ControlNet",
        "StableDiffusionXLControlNetPAGPipeline",
        own=build_controlnet,
        call={"image": CONTROL},
    ),
    pag(
        "PAG, ControlNet, image-to-image",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        own=build_controlnet,
        call=FROM_PICTURE | {"control_image": CONTROL},
    ),
    Case(
        "InstructPix2Pix",
        "StableDiffusionXLInstructPix2PixPipeline",
        unet={"in_channels": 8},
        call={"image": PICTURE},
        guided=("positive", "negative", "negative"),
        halved=(),
        theirs=None,
        tells=False,
    ),
    Case("AnimateDiff", "AnimateDiffSDXLPipeline", call={"num_frames": FRAMES}, frames=FRAMES),
]

KOLORS = [
    Case("text-to-image", "KolorsPipeline"),
    Case("image-to-image", "KolorsImg2ImgPipeline", call=FROM_PICTURE),
    pag("PAG", "KolorsPAGPipeline"),
]


def on(base: Base, cases: Sequence[Case]) -> list[Case]:
    """The same pipelines with another base, whose text comes with more or less beside it."""
    text = XL_TEXT if base in ("SDXL", "Kolors") else ("prompt_embeds",)
    return [replace(case, base=base, halved=text + case.halved[1:] if case.halved else ()) for case in cases]


# Stable Diffusion 2.x runs in the very same classes; some of them show its U-Net and its v-prediction.
SD2 = ["text-to-image", "image-to-image", "inpainting, 9 channels", "ControlNet", "T2I-Adapter", "PAG"]
SD2 += ["InstructPix2Pix"]

CASES = [*SD, *VIDEO, *on("SD2.x", [case for case in SD if case.title in SD2]), DEPTH]
CASES += [*on("SDXL", XL), *on("Kolors", KOLORS)]
