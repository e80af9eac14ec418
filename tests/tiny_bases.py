"""Tiny random bases of every family, and the models that pipelines put beside them.

Made of `tiny`'s parts; Stable Diffusion 2.x, Kolors and AnimateDiff, which `tiny` does not have, differ from
these as the real ones do.
"""

import functools
import types
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from torch import Tensor, nn
from transformers import BatchEncoding

import tiny

Base = Literal["SD1.5", "SD2.x", "SDXL", "Kolors"]
FRAMES = 3
SD2_CONTEXT, KOLORS_TEXT = 24, tiny.XL_CONTEXT_2


def base_unet(base: Base, video: bool = False, **options: Any) -> Any:
    return _base_unet(base, video, tuple(options.items()))


@functools.cache
def _base_unet(base: Base, video: bool, options: tuple[tuple[str, Any], ...]) -> Any:
    if video:
        return motion_unet(base_unet(base))
    config = (tiny.xl_unet() if base in ("SDXL", "Kolors") else tiny.sd_unet()).config
    return unet_of(dict(config) | BASE_OPTIONS[base] | dict(options))


BASE_OPTIONS: dict[Base, dict[str, Any]] = {
    "SD1.5": {},
    "SD2.x": {
        "cross_attention_dim": SD2_CONTEXT,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
    },
    "SDXL": {},
    "Kolors": {"encoder_hid_dim": KOLORS_TEXT, "encoder_hid_dim_type": "text_proj"},
}


@tiny.seeded
def unet_of(config: dict[str, Any], *, seed: int = 2) -> UNet2DConditionModel:
    # Private entries name what was default when the other U-Net was made; from_config would drop these.
    made = UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    assert isinstance(made, UNet2DConditionModel)
    return made.eval()


@tiny.seeded
def motion_unet(unet: UNet2DConditionModel, *, seed: int = 3) -> UNetMotionModel:
    """Give a U-Net random motion modules, strong enough that frames matter to one another."""
    motion = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=FRAMES,
    )
    for parameter in motion.parameters():
        nn.init.normal_(parameter, std=0.1)
    made: Any = UNetMotionModel.from_unet2d(unet, motion)
    return made.eval()


@functools.cache
def base_parts(base: Base) -> dict[str, Any]:
    """Everything but the U-Net and the scheduler."""
    parts: dict[str, Any] = {
        "vae": tiny.autoencoder(),
        "feature_extractor": tiny.image_processor(),
        "image_encoder": tiny.vision_model(seed=3),
        "safety_checker": None,
        "motion_adapter": None,
        "depth_estimator": None,
        "requires_safety_checker": False,
        "add_watermarker": False,
        "tokenizer": Letters() if base == "Kolors" else tiny.tokenizer(),
        "tokenizer_2": tiny.tokenizer(),
    }
    if base == "Kolors":
        return parts | {"text_encoder": LetterModel()}
    if base == "SDXL":
        text = tiny.text_model(seed=1, width=tiny.XL_CONTEXT_1)
        return parts | {"text_encoder": text, "text_encoder_2": tiny.text_model_with_projection(seed=4)}
    width = SD2_CONTEXT if base == "SD2.x" else tiny.SD_CONTEXT
    return parts | {"text_encoder": tiny.text_model(seed=1, width=width)}


def base_scheduler(base: Base) -> Any:
    prediction = "v_prediction" if base == "SD2.x" else "epsilon"
    return type(tiny.scheduler()).from_config(tiny.scheduler().config, prediction_type=prediction)


class Letters:
    """Stands in for Kolors's tokenizer: a prompt is its letters."""

    def __call__(self, prompts: Sequence[str], **_: object) -> BatchEncoding:
        rows = [[ord(letter) for letter in prompt.ljust(tiny.CONTEXT_LEN)] for prompt in prompts]
        ids = torch.tensor(rows)[:, : tiny.CONTEXT_LEN]
        return BatchEncoding({"input_ids": ids, "attention_mask": ids, "position_ids": ids})


class LetterModel(nn.Module):
    """Stands in for Kolors's text model: each letter, and the mean of those before it."""

    dtype, device = torch.float32, torch.device("cpu")

    @tiny.seeded
    def __init__(self, *, seed: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, KOLORS_TEXT)

    def forward(self, input_ids: Tensor, **_: object) -> types.SimpleNamespace:
        letters = self.embedding(input_ids.T)
        means = letters.cumsum(0) / torch.arange(1, len(letters) + 1)[:, None, None]
        return types.SimpleNamespace(hidden_states=[letters + means, means])


@tiny.seeded
def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape)


# What pipelines put beside a base


@tiny.seeded
def controlnet(unet: UNet2DConditionModel, *, seed: int = 3) -> ControlNetModel:
    """With random weights everywhere, also where training starts from zero."""
    made = ControlNetModel.from_unet(_picture_unet(unet), conditioning_embedding_out_channels=(4, 8))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval()


def _picture_unet(unet: Any) -> UNet2DConditionModel:
    is_plain = isinstance(unet, UNet2DConditionModel) and unet.config["in_channels"] == 4
    return unet if is_plain else base_unet("SD1.5")


@tiny.seeded
def t2i_adapter(unet: UNet2DConditionModel, *, seed: int = 4) -> T2IAdapter:
    """Its features have the sizes that the U-Net's two blocks expect."""
    is_xl = unet.config["addition_embed_type"] is not None
    made = T2IAdapter(
        channels=[16, 32],
        num_res_blocks=1,
        downscale_factor=4 if is_xl else 2,
        adapter_type="full_adapter_xl" if is_xl else "full_adapter",
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval()
