"""The published baselines of Table 1, each in the diffusers pipeline that was made for it."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.deprecated.unclip.pipeline_unclip_image_variation import UnCLIPImageVariationPipeline
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.versatile_diffusion.pipeline_versatile_diffusion_image_variation import (
    VersatileDiffusionImageVariationPipeline,
)
from diffusers.pipelines.kandinsky.pipeline_kandinsky import KandinskyPipeline
from diffusers.pipelines.kandinsky.pipeline_kandinsky_prior import KandinskyPriorPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_image_variation import (
    StableDiffusionImageVariationPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from PIL import Image
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from imprompt.evaluation.methods.method import Method, load_pretrained
from imprompt.evaluation.methods.shuffle import shuffle_content
from imprompt.evaluation.methods.table import METHODS
from imprompt.evaluation.settings import DrawingSettings, MethodSettings
from imprompt.generation.pipeline_call import call_pipeline, make_generators

_WITHOUT_CHECKER = {"safety_checker": None, "requires_safety_checker": False}


class Baseline(Method):
    """A pipeline that takes a picture as its image prompt."""

    pipeline: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {}

    def load_pipeline(self) -> Any:
        """Load the pipeline as it is published."""
        return load_pretrained(self.pipeline, self.model, dtype=self.dtype, **self.options)

    @property
    def second(self) -> str:
        """The folder or hub id of a second model that the pipeline needs."""
        return self.method.second or self.published.second

    @classmethod
    def find_encoder_source(cls, method: MethodSettings) -> str | None:
        """Return the folder or repository whose image_encoder/ conditions it; None if no encoder does."""
        return method.model or METHODS[method.name].model

    def draw(
        self, reference: Image.Image, text: str, scale: float | int, seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Implement `Method.draw`."""
        arguments = self.build_pipeline_arguments(text, seeds) | self.build_image_arguments(reference, seeds)
        return call_pipeline(self.pipe, arguments, seeds=seeds)

    def build_image_arguments(self, reference: Image.Image, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the pipeline's arguments for the image prompt."""
        return {"image": [reference] * len(seeds)}


class SDUnclip(Baseline):
    """Stable Diffusion 2.1 fine-tuned on image embeddings."""

    pipeline = StableUnCLIPImg2ImgPipeline


class VersatileDiffusion(Baseline):
    """The image-variation flow of Versatile Diffusion."""

    pipeline = VersatileDiffusionImageVariationPipeline


class SDImageVariations(Baseline):
    """Stable Diffusion with an image embedding in place of the text."""

    pipeline = StableDiffusionImageVariationPipeline
    options: ClassVar = _WITHOUT_CHECKER


class Unclip(Baseline):
    """Karlo: a decoder and two super-resolution steps, all with its own sampler."""

    pipeline = UnCLIPImageVariationPipeline

    parts: ClassVar[dict[str, Any]] = {
        "decoder": UNet2DConditionModel,
        "text_encoder": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "text_proj": UnCLIPTextProjModel,
        "feature_extractor": CLIPImageProcessorPil,
        "image_encoder": CLIPVisionModelWithProjection,
        "super_res_first": UNet2DModel,
        "super_res_last": UNet2DModel,
        "decoder_scheduler": UnCLIPScheduler,
        "super_res_scheduler": UnCLIPScheduler,
    }

    def load_pipeline(self) -> Any:
        """Load the pipeline by parts: diffusers 0.42 does not find `text_proj` by its name in the index."""
        parts = {name: load_pretrained(kind, self.model, subfolder=name) for name, kind in self.parts.items()}
        return UnCLIPImageVariationPipeline(**parts).to(self.dtype)

    def build_pipeline_arguments(self, text: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the decoder's steps and guidance; text and size cannot be chosen."""
        return {
            "decoder_num_inference_steps": self.drawing.steps,
            "decoder_guidance_scale": self.drawing.guidance_scale,
            "generator": make_generators(seeds),
        }


class Kandinsky(Baseline):
    """The decoder of Kandinsky 2.1 on the reference's CLIP embedding, as in the prior's `interpolate`.

    The prior's transformer maps text to an embedding, which an image prompt does not need. Only its image
    encoder is used.
    """

    pipeline = KandinskyPipeline

    def __init__(self, method: MethodSettings, drawing: DrawingSettings, device: torch.device) -> None:
        super().__init__(method, drawing, device)
        self.prior = load_pretrained(KandinskyPriorPipeline, self.second, dtype=self.dtype)
        self.prior.image_encoder.to(device)

    @classmethod
    def find_encoder_source(cls, method: MethodSettings) -> str | None:
        """Return the prior's source, whose image encoder it is."""
        return method.second or METHODS[method.name].second

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Implement `Method.modules`."""
        yield from super().modules()
        yield "prior.image_encoder", self.prior.image_encoder

    @torch.no_grad()
    def build_image_arguments(self, reference: Image.Image, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the reference's embedding, and the zero image's for the negative branch."""
        encoder, count = self.prior.image_encoder, len(seeds)
        pixels = self.prior.image_processor(reference, return_tensors="pt").pixel_values
        embedding = encoder(pixels.to(self.device, encoder.dtype)).image_embeds
        blank = self.prior.get_zero_embed(count, device=self.device)
        return {"image_embeds": embedding.repeat(count, 1), "negative_image_embeds": blank}


class ControlNetShuffle(Baseline):
    """Stable Diffusion 1.5 with a ControlNet that was trained to restore a shuffled picture."""

    pipeline = StableDiffusionControlNetPipeline

    def load_pipeline(self) -> Any:
        """Load the base and the ControlNet."""
        control = load_pretrained(ControlNetModel, self.second, torch_dtype=self.dtype)
        options = {"controlnet": control, **_WITHOUT_CHECKER}
        return load_pretrained(self.pipeline, self.model, dtype=self.dtype, **options)

    @classmethod
    def find_encoder_source(cls, method: MethodSettings) -> str | None:
        """Return None: no encoder conditions it."""
        return None

    def build_image_arguments(self, reference: Image.Image, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the reference with a shuffle for each sample, in the size of the result."""
        size = self.drawing.size or self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        images = [shuffle_content(reference, size, seed) for seed in seeds]
        return {"image": images, "height": size, "width": size}


BASELINES: dict[str, type[Baseline]] = {
    "unclip": Unclip,
    "sd-unclip": SDUnclip,
    "kandinsky": Kandinsky,
    "versatile-diffusion": VersatileDiffusion,
    "sd-image-variations": SDImageVariations,
    "controlnet-shuffle": ControlNetShuffle,
}
"""Name in a configuration → class of the method."""
