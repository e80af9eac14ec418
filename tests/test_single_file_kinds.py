"""A file that is no base model is named for what it is, with the place where it belongs, in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import adapter_files
import tiny
from imprompt import load_pipeline
from imprompt.errors import CheckpointError
from imprompt.generation.single_file import recognize_checkpoint
from imprompt.inputs.embeddings import ImageEmbeddings
from ldm_layout import convert_vae

UNET = "model.diffusion_model."


def zeros(*names: str, shape: tuple[int, ...] = (2, 2)) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name in names}


def unet_file(width: int, channels: int = 4, *extra: str, depth: int = 10) -> dict[str, Tensor]:
    """The tensors by which U-Nets of the original layout are told apart."""
    first = {f"{UNET}input_blocks.0.0.weight": torch.zeros(4, channels, 3, 3)}
    block = 4 if width >= 1280 else 1
    text = zeros(f"{UNET}input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight", shape=(4, width))
    deep = zeros(f"{UNET}input_blocks.8.1.transformer_blocks.{depth - 1}.norm1.bias") if width == 2048 else {}
    return first | text | deep | zeros(*(f"{UNET}{name}" if name[0] != "!" else name[1:] for name in extra))


FILES: dict[str, tuple[dict[str, Tensor], str]] = {
    "a LoRA by kohya": (
        zeros("lora_unet_down_blocks_0.lora_down.weight", "lora_te_text_model.alpha"),
        "a LoRA, not a base .*: give it with --lora, and the base with --base",
    ),
    "a LoRA by peft": (zeros("base_model.model.down_blocks.0.attn1.to_q.lora_A.weight"), "a LoRA"),
    "a LoRA by diffusers": (zeros("unet.down_blocks.0.attn1.processor.to_q_lora.down.weight"), "a LoRA"),
    "a LoRA of FLUX": (zeros("transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"), "a LoRA"),
    "a LoHa": (zeros("lora_unet_mid_block_attentions_0.hada_w1_a"), "a LoRA"),
    "an adapter": (
        adapter_files.official(tiny.adapter(tiny.sd_unet())),
        "an image-prompt adapter.*--adapter",
    ),
    "a FaceID adapter": (
        adapter_files.official(adapter_files.adapter(tiny.sd_unet(), "faceid")),
        "an image-prompt adapter",
    ),
    "a ControlNet": (
        zeros("control_model.zero_convs.0.0.weight", "control_model.input_blocks.0.0.weight"),
        "a ControlNet.*--control-model",
    ),
    "a ControlNet by diffusers": (
        zeros("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
        "a ControlNet",
    ),
    "a Control-LoRA": (zeros("lora_controlnet", "input_blocks.0.0.weight"), "a Control-LoRA"),
    "a T2I-Adapter": (zeros("adapter.body.0.resnets.0.block1.weight"), "a T2I-Adapter"),
    "a motion module": (
        zeros("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias"),
        "a motion module",
    ),
    "an autoencoder": (convert_vae(tiny.autoencoder()), "an autoencoder.*--vae"),
    "an autoencoder by diffusers": (tiny.autoencoder().state_dict(), "an autoencoder"),
    "a U-Net by diffusers": (tiny.sd_unet().state_dict(), "the U-Net of a base model.*use a file with U-Net"),
    "a U-Net without prefix": (zeros("input_blocks.0.0.weight"), "the U-Net of a base model"),
    "a text encoder": (tiny.text_model().state_dict(), "a text encoder"),
    "an image encoder": (tiny.vision_model().state_dict(), "an image encoder.*--image-encoder"),
    "a textual inversion": (zeros("emb_params", shape=(4, 768)), "a textual inversion.*--embedding"),
    "a textual inversion of SDXL": (zeros("clip_l", "clip_g"), "a textual inversion"),
    "a textual inversion by diffusers": (zeros("my-cat", shape=(768,)), "a textual inversion"),
    "averaged weights": (
        zeros("model_ema.diffusion_modelinput_blocks00weight"),
        "a file of averaged .EMA. weights only",
    ),
    "FLUX": (zeros("double_blocks.0.img_attn.qkv.weight"), "a FLUX model.*a base with a U-Net"),
    "FLUX with prefix": (zeros(f"{UNET}double_blocks.0.img_attn.qkv.weight"), "a FLUX model"),
    "Stable Diffusion 3": (
        zeros(f"{UNET}joint_blocks.0.x_block.mlp.fc1.weight"),
        "a Stable Diffusion 3 model",
    ),
    "4 bits": (zeros("input_blocks.0.0.weight", "input_blocks.0.0.weight.absmax"), "a quantized model"),
    "8 bits": ({"input_blocks.0.0.weight": torch.zeros(2, 2, dtype=torch.int8)}, "a quantized model"),
    "the refiner": (
        unet_file(1280),
        "the SDXL refiner, .*use a base model of Stable Diffusion 1.5, 2.x or SDXL",
    ),
    "InstructPix2Pix": (unet_file(768, 8), "InstructPix2Pix"),
    "Zero123": (unet_file(768, 8, "!cc_projection.weight"), "Zero123"),
    "depth": (unet_file(1024, 5), "Stable Diffusion 2 depth-to-image"),
    "the upscaler": (unet_file(1024, 7), "the Stable Diffusion ×4 upscaler"),
    "unCLIP": (unet_file(1024, 4, "label_emb.0.0.weight"), "Stable unCLIP 2.1"),
    "SSD-1B": (unet_file(2048, depth=4), "a distilled SDXL"),
    "Playground": (unet_file(2048, 4, "!edm_mean", "!edm_std"), "Playground 2.5"),
    "CosXL": (unet_file(2048, 4, "!edm_vpred.sigma_max"), "CosXL"),
    "a consistency model": (unet_file(768, 4, "time_embed.cond_proj.weight"), "a latent consistency model"),
    "video": (unet_file(1024, 8, "input_blocks.1.1.time_stack.0.norm1.bias"), "Stable Video Diffusion"),
    "SD 1.5 alone": (unet_file(768), "Stable Diffusion 1.5 without an autoencoder and a text encoder"),
    "SDXL without text": (
        unet_file(2048, 4, "!first_stage_model.encoder.conv_in.weight"),
        "Stable Diffusion XL without both text encoders",
    ),
    "unknown": (zeros("abc.weight"), "a file with unknown tensors, the first of them 'abc.weight'"),
    "nothing": ({}, "a file with no tensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_another_kind_of_file_is_named(tmp_path: Path, case: str) -> None:
    tensors, sentence = FILES[case]
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors is {sentence}") as raised:
        load_pipeline(str(path))
    assert str(raised.value).count("\n") == 0


def test_image_embeddings_are_named(tmp_path: Path) -> None:
    made = ImageEmbeddings({"image_embedding": torch.ones(1, 14)}, {"image_embedding": torch.zeros(14)}, {})
    made.save(tmp_path / "cat.safetensors")
    found = recognize_checkpoint(tmp_path / "cat.safetensors")
    assert (found.role, found.name) == ("other", "a file of image embeddings")


def test_a_textual_inversion_of_the_web_ui_is_named(tmp_path: Path) -> None:
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.zeros(2, 768)},
        "name": "cat",
        "step": 500,
    }
    torch.save(content, tmp_path / "cat.pt")
    assert recognize_checkpoint(tmp_path / "cat.pt").name == "a textual inversion"


class Callback:
    """Stands for what trainers pickle beside the weights."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GGUF\x03\0\0\0" + bytes(64), "is a GGUF file of quantized weights"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\xff\xd8\xff\xe0" + bytes(64), "is truncated or no adapter file"),
    ],
)
def test_a_file_without_tensors_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_pipeline(str(path))
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_half_a_download_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path, tensors = tmp_path / f"model.{suffix}", tiny.sd_unet().state_dict()
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is truncated") as raised:
        load_pipeline(str(path))
    assert str(raised.value).count("\n") == 0


def test_a_pickle_with_objects_is_refused_unread(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": tiny.sd_unet().state_dict(), "callbacks": {Callback: Callback()}}
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="holds more than tensors, perhaps code; it was refused"):
        load_pipeline(str(tmp_path / "model.ckpt"))
