"""Tiny random models of every published baseline, as folders in diffusers' format: 16 px, no downloads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.pipeline_unclip_image_variation import UnCLIPImageVariationPipeline
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.versatile_diffusion.pipeline_versatile_diffusion_image_variation import (
    VersatileDiffusionImageVariationPipeline,
)
from diffusers.pipelines.kandinsky.pipeline_kandinsky import KandinskyPipeline
from diffusers.pipelines.kandinsky.pipeline_kandinsky_prior import KandinskyPriorPipeline
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_image_variation import (
    StableDiffusionImageVariationPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from transformers import CLIPTextModelWithProjection, XLMRobertaTokenizer

import tiny

Folders = dict[str, str]
"""What `[method]` calls the folders: "model", and perhaps "second"."""


@tiny.seeded
def unet(*, seed: int = 0, **options: Any) -> UNet2DConditionModel:
    given = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**given, **options}).eval()


def sd_image_variations(folder: Path) -> Folders:
    StableDiffusionImageVariationPipeline(
        vae=tiny.autoencoder(),
        image_encoder=tiny.vision_model(),
        unet=unet(cross_attention_dim=tiny.EMBEDDING_DIM),
        scheduler=tiny.scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=tiny.image_processor(),  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    ).save_pretrained(folder / "variations")
    return {"model": str(folder / "variations")}


def sd_unclip(folder: Path) -> Folders:
    width = tiny.EMBEDDING_DIM
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=tiny.image_processor(),  # pyright: ignore[reportArgumentType]
        image_encoder=tiny.vision_model(),
        image_normalizer=StableUnCLIPImageNormalizer(width),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),  # pyright: ignore
        tokenizer=tiny.tokenizer(),
        text_encoder=tiny.text_model(),
        unet=unet(
            cross_attention_dim=tiny.SD_CONTEXT,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * width,
        ),
        scheduler=tiny.scheduler(),  # pyright: ignore[reportArgumentType]
        vae=tiny.autoencoder(),
    ).save_pretrained(folder / "sd-unclip")
    return {"model": str(folder / "sd-unclip")}


def versatile_diffusion(folder: Path) -> Folders:
    VersatileDiffusionImageVariationPipeline(
        image_feature_extractor=tiny.image_processor(),  # pyright: ignore[reportArgumentType]
        image_encoder=tiny.vision_model(),
        image_unet=unet(cross_attention_dim=tiny.EMBEDDING_DIM),
        vae=tiny.autoencoder(),
        scheduler=tiny.scheduler(),  # pyright: ignore[reportArgumentType]
    ).save_pretrained(folder / "versatile")
    return {"model": str(folder / "versatile")}


def controlnet_shuffle(folder: Path) -> Folders:
    tiny.sd_pipeline().save_pretrained(folder / "sd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(tiny.sd_unet(), conditioning_embedding_out_channels=(4, 8))
    for parameter in control.parameters():  # its last layers begin as zeros, and it would say nothing
        if not parameter.any():
            torch.nn.init.constant_(parameter, 0.1)
    control.save_pretrained(folder / "control")
    return {"model": str(folder / "sd"), "second": str(folder / "control")}


@tiny.seeded
def _decoder(*, seed: int = 0) -> UNet2DConditionModel:
    return unet(
        in_channels=3,
        out_channels=6,
        cross_attention_dim=10,
        class_embed_type="identity",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )


@tiny.seeded
def _super_resolution(*, seed: int = 0) -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    ).eval()


@tiny.seeded
def _text_projection(*, seed: int = 0) -> UnCLIPTextProjModel:
    width = tiny.EMBEDDING_DIM
    return UnCLIPTextProjModel(
        clip_embeddings_dim=width, time_embed_dim=64, cross_attention_dim=10, clip_extra_context_tokens=2
    ).eval()


@tiny.seeded
def _text_encoder(*, seed: int = 0) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(tiny.text_config(tiny.EMBEDDING_DIM, tiny.EMBEDDING_DIM)).eval()


def unclip(folder: Path) -> Folders:
    schedule = {"prediction_type": "epsilon", "num_train_timesteps": 1000}
    UnCLIPImageVariationPipeline(
        decoder=_decoder(),
        text_encoder=_text_encoder(),
        tokenizer=tiny.tokenizer(),
        text_proj=_text_projection(),
        feature_extractor=tiny.image_processor(),  # pyright: ignore[reportArgumentType]
        image_encoder=tiny.vision_model(),
        super_res_first=_super_resolution(),
        super_res_last=_super_resolution(seed=1),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", **schedule),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", **schedule),
    ).save_pretrained(folder / "karlo")
    return {"model": str(folder / "karlo")}


def kandinsky(folder: Path) -> Folders:
    width = tiny.EMBEDDING_DIM
    _decode(width).save_pretrained(folder / "kandinsky")
    _prior(width).save_pretrained(folder / "prior")
    return {"model": str(folder / "kandinsky"), "second": str(folder / "prior")}


def _decode(width: int) -> KandinskyPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MCLIPConfig(
            numDims=width,
            transformerDimensions=12,
            hidden_size=12,
            intermediate_size=20,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=64,
            max_position_embeddings=90,
        )
        text = MultilingualCLIP(config).eval()
        movq = VQModel(
            block_out_channels=(8, 8),  # pyright: ignore[reportArgumentType]
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            num_vq_embeddings=8,
            vq_embed_dim=4,
        ).eval()
    return KandinskyPipeline(
        text_encoder=text,
        tokenizer=_sentence_pieces(),
        unet=unet(
            cross_attention_dim=width,
            out_channels=8,
            addition_embed_type="text_image",
            addition_embed_type_num_heads=2,
            encoder_hid_dim=12,
            encoder_hid_dim_type="text_image_proj",
        ),
        scheduler=tiny.scheduler(),
        movq=movq,
    )


def _sentence_pieces() -> XLMRobertaTokenizer:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz", "<mask>"]
    return XLMRobertaTokenizer(vocab=[(piece, -1.0) for piece in pieces], model_max_length=77)


def _prior(width: int) -> KandinskyPriorPipeline:
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, embedding_dim=width, num_layers=1, num_embeddings=11
    )
    return KandinskyPriorPipeline(
        prior=prior.eval(),
        image_encoder=tiny.vision_model(),
        text_encoder=tiny.text_model_with_projection(),
        tokenizer=tiny.tokenizer(),
        scheduler=UnCLIPScheduler(prediction_type="sample", variance_type="fixed_small_log"),
        image_processor=tiny.image_processor(),  # pyright: ignore[reportArgumentType]
    )


BASELINES: dict[str, Callable[[Path], Folders]] = {
    "unclip": unclip,
    "sd-unclip": sd_unclip,
    "kandinsky": kandinsky,
    "versatile-diffusion": versatile_diffusion,
    "sd-image-variations": sd_image_variations,
    "controlnet-shuffle": controlnet_shuffle,
}
