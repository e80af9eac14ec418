"""The published sizes, on models without memory (the meta device)."""

from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from variants import UNETS

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.layers import describe_base, find_cross_attention_layers, read_layer_shapes
from imprompt.projection import LinearProjection

SD15, SDXL = UNETS["SD1.5"], UNETS["SDXL"]
SD2: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}


def unet(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def trainable(config: dict[str, Any], embedding_dim: int) -> int:
    with torch.device("meta"):
        projection = LinearProjection(embedding_dim, config["cross_attention_dim"])
    adapter = ImagePromptAdapter.for_unet(unet(config), projection)
    return sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("config", "embedding_dim", "count"),
    [
        pytest.param(SD15, 1024, 22_319_616, id="SD1.5, ViT-H"),
        pytest.param(SD15, 1280, 23_106_048, id="SD1.5, ViT-bigG"),
        pytest.param(SDXL, 1280, 351_285_248, id="SDXL, ViT-bigG"),
        pytest.param(SDXL, 1024, 349_188_096, id="SDXL, ViT-H"),
    ],
)
def test_trainable_parameters_are_as_published(
    config: dict[str, Any], embedding_dim: int, count: int
) -> None:
    assert trainable(config, embedding_dim) == count


def test_sd15_layers_have_the_official_numbers_and_widths() -> None:
    shapes = read_layer_shapes(find_cross_attention_layers(unet(SD15)))
    assert list(shapes) == list(range(1, 32, 2))
    inner = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]
    assert list(shapes.values()) == [(768, width) for width in inner]


def test_sdxl_layers_have_the_official_numbers_and_widths() -> None:
    shapes = read_layer_shapes(find_cross_attention_layers(unet(SDXL)))
    assert list(shapes) == list(range(1, 140, 2))
    inner = [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10
    assert list(shapes.values()) == [(2048, width) for width in inner]


def test_the_last_official_number_is_the_middle_block() -> None:
    names = {number: name for number, (name, _) in find_cross_attention_layers(unet(SD15)).items()}
    assert names[1] == "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert names[13] == "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert names[31] == "mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SD15, "SD1.5 (16 layers, 768-wide text)"),
        (SD2, "SD2.x (16 layers, 1024-wide text)"),
        (SDXL, "SDXL (70 layers, 2048-wide text)"),
    ],
)
def test_a_base_is_named_by_its_layers(config: dict[str, Any], words: str) -> None:
    assert describe_base(read_layer_shapes(find_cross_attention_layers(unet(config)))) == words
