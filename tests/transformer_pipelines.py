"""Tiny random pipelines of every kind that diffusers has for FLUX.1 and Stable Diffusion 3.5.

Texts are embeddings made from a prompt's letters, so no text encoder runs. Whether the transformer is called
for the positive or the negative branch, or for both, is not found out but said: a layout per call of a step.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

import tiny
import tiny_transformers
from imprompt.attention.diffusers_internals import Branches
from tiny_transformers import (
    CHANNELS,
    FLUX_CONTEXT,
    FLUX_POOLED,
    HEAD_DIM,
    HEADS,
    JOINT_CHANNELS,
    JOINT_CONTEXT,
    JOINT_POOLED,
)

HEIGHT, WIDTH, STEPS, TEXT = 16, 24, 2, 5
PICTURE, CONTROL = (tiny.picture(seed=seed, width=WIDTH, height=HEIGHT) for seed in (7, 8))
HALF = Image.new("L", (WIDTH, HEIGHT))
HALF.paste(255, (0, 0, 13, HEIGHT))
POSITIVE: Branches = ("positive",)
NEGATIVE: Branches = ("negative",)
STACKED: Branches = ("negative", "positive")

Family = Literal["FLUX.1", "SD3.5"]


@dataclass(frozen=True, eq=False)
class TransformerCase:
    """One pipeline.

    Args:
        title: what people call it
        kind: the name of diffusers' class
        family: the base
        call: arguments that every call needs
        guided: the layouts of a step's calls with guidance; None where there is no true guidance
        channels: of the packed latents that the transformer takes
        control: whether it has a ControlNet
        theirs: whether diffusers' own adapter is there
        listed: arguments that are a list, one for each picture
    """

    title: str
    kind: str
    family: Family
    call: Mapping[str, Any] = field(default_factory=dict)
    guided: tuple[Branches, ...] | None = (POSITIVE, NEGATIVE)
    channels: int = 4 * CHANNELS
    control: bool = False
    theirs: bool = True
    listed: Sequence[str] = ()
    calls: Sequence[tuple[int, Branches]] = ()
    """(step, branches) of every call with guidance, where a step has not always the same ones."""

    def __str__(self) -> str:
        return f"{self.family}, {self.title}"

    def build(self) -> Any:
        """Make the pipeline."""
        kind: Any = getattr(diffusers, self.kind)
        parts: dict[str, Any] = dict.fromkeys(kind._get_signature_keys(kind)[0])
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.5)
        parts |= {"vae": autoencoder(self.family), "scheduler": scheduler}
        parts["transformer"] = self.transformer()
        if self.control:
            parts["controlnet"] = controlnet(self.family)
        pipe = kind(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def transformer(self) -> Any:
        if self.family == "SD3.5":
            return tiny_transformers.joint_transformer()
        return tiny_transformers.flux_transformer(guidance=True, channels=self.channels)

    def latents(
        self,
        pipe: Any,
        prompts: Sequence[str] = ("a cat",),
        each: int = 1,
        *,
        guided: bool = True,
        **changes: Any,
    ) -> Tensor:
        """Call it: of every prompt `each` pictures, from seeds 0, 1, 2, ... or those given."""
        seeds = changes.pop("seeds", range(len(prompts) * each))
        arguments = {"num_inference_steps": STEPS, "output_type": "latent", "height": HEIGHT, "width": WIDTH}
        arguments |= {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
        # diffusers does not repeat embeddings for several pictures of a prompt.
        prompts = [prompt for prompt in prompts for _ in range(each)]
        arguments |= self._texts(prompts, guided) | dict(self.call) | changes
        arguments |= {name: [arguments[name]] * len(prompts) for name in self.listed}
        with torch.no_grad():
            return pipe(**arguments).images

    def _texts(self, prompts: Sequence[str], guided: bool) -> dict[str, Any]:
        is_flux = self.family == "FLUX.1"
        widths = (FLUX_CONTEXT, FLUX_POOLED) if is_flux else (JOINT_CONTEXT, JOINT_POOLED)
        texts: dict[str, Any] = dict(
            zip(("prompt_embeds", "pooled_prompt_embeds"), embed(prompts, *widths), strict=True)
        )
        if is_flux and self.guided is None:
            return texts
        if is_flux:
            texts["true_cfg_scale"] = 2.0 if guided else 1.0
        else:
            texts["guidance_scale"] = 2.0 if guided else 1.0
        names = "negative_prompt_embeds", "negative_pooled_prompt_embeds"
        return texts | dict(zip(names, embed(["ugly"] * len(prompts), *widths), strict=True))


def embed(prompts: Sequence[str], width: int, pooled: int) -> tuple[Tensor, Tensor]:
    """Random states of each prompt, and a pooled embedding; equal prompts get equal ones."""
    states, vectors = [], []
    for prompt in prompts:
        random = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        states.append(torch.randn(TEXT, width, generator=random))
        vectors.append(torch.randn(pooled, generator=random))
    return torch.stack(states), torch.stack(vectors)


@functools.cache
@tiny.seeded
def autoencoder(family: Family) -> AutoencoderKL:
    """Two blocks: pictures are twice as wide as latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        latent_channels=JOINT_CHANNELS if family == "SD3.5" else CHANNELS,
        shift_factor=0.1,
        scaling_factor=0.9,
        sample_size=HEIGHT,
    ).eval()


@functools.cache
@tiny.seeded
def controlnet(family: Family) -> Any:
    """A ControlNet, all weights random."""
    if family == "FLUX.1":
        made: Any = FluxControlNetModel(
            in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            joint_attention_dim=FLUX_CONTEXT,
            pooled_projection_dim=FLUX_POOLED,
            guidance_embeds=True,
            axes_dims_rope=[2, 2, 4],
        )
    else:
        made = SD3ControlNetModel(
            sample_size=16,
            in_channels=JOINT_CHANNELS,
            num_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            joint_attention_dim=JOINT_CONTEXT,
            caption_projection_dim=HEADS * HEAD_DIM,
            pooled_projection_dim=JOINT_POOLED,
            out_channels=JOINT_CHANNELS,
            pos_embed_max_size=16,
        )
    for name, weight in made.named_parameters():
        if "controlnet" in name:
            nn.init.normal_(weight, std=0.1)
    return made.eval()


FROM_PICTURE = {"image": PICTURE, "strength": 0.9, "num_inference_steps": 3}
INPAINT = {"image": PICTURE, "mask_image": HALF, "strength": 1.0}
INPAINTED = ("image", "mask_image")

FLUX_CASES = [
    TransformerCase("text-to-image", "FluxPipeline", "FLUX.1"),
    TransformerCase("image-to-image", "FluxImg2ImgPipeline", "FLUX.1", FROM_PICTURE, listed=("image",)),
    TransformerCase("inpainting", "FluxInpaintPipeline", "FLUX.1", INPAINT, listed=INPAINTED),
    TransformerCase(
        "Fill",
        "FluxFillPipeline",
        "FLUX.1",
        {"image": PICTURE, "mask_image": HALF},
        guided=None,
        channels=48,
        theirs=False,
        listed=INPAINTED,
    ),
    TransformerCase(
        "Kontext",
        "FluxKontextPipeline",
        "FLUX.1",
        {"image": PICTURE, "_auto_resize": False, "max_area": HEIGHT * WIDTH},
    ),
    TransformerCase(
        "ControlNet",
        "FluxControlNetPipeline",
        "FLUX.1",
        {"control_image": CONTROL},
        control=True,
    ),
    TransformerCase(
        "ControlNet, image-to-image",
        "FluxControlNetImg2ImgPipeline",
        "FLUX.1",
        FROM_PICTURE | {"control_image": CONTROL},
        guided=None,
        control=True,
        theirs=False,
        listed=("image",),
    ),
    TransformerCase(
        "ControlNet, inpainting",
        "FluxControlNetInpaintPipeline",
        "FLUX.1",
        INPAINT | {"control_image": CONTROL},
        guided=None,
        control=True,
        theirs=False,
        listed=INPAINTED,
    ),
]

SD3_CASES = [
    TransformerCase("text-to-image", "StableDiffusion3Pipeline", "SD3.5", guided=(STACKED,)),
    TransformerCase(
        "text-to-image, skip-layer guidance",
        "StableDiffusion3Pipeline",
        "SD3.5",
        {
            "skip_guidance_layers": [1],
            "skip_layer_guidance_start": 0.0,
            "skip_layer_guidance_stop": 1.0,
            "skip_layer_guidance_scale": 1.5,
        },
        guided=(STACKED,),
        theirs=False,  # diffusers merges the branches in the third call.
        calls=((0, STACKED), (1, STACKED), (1, POSITIVE)),
    ),
    TransformerCase(
        "image-to-image",
        "StableDiffusion3Img2ImgPipeline",
        "SD3.5",
        FROM_PICTURE,
        guided=(STACKED,),
        listed=("image",),
    ),
    TransformerCase(
        "inpainting",
        "StableDiffusion3InpaintPipeline",
        "SD3.5",
        INPAINT,
        guided=(STACKED,),
        listed=INPAINTED,
    ),
    TransformerCase(
        "ControlNet",
        "StableDiffusion3ControlNetPipeline",
        "SD3.5",
        {"control_image": CONTROL},
        guided=(STACKED,),
        control=True,
    ),
]
CASES = [*FLUX_CASES, *SD3_CASES]
