"""Image encoders: frozen, equal to transformers', loaded from folders."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from imprompt.encoder import CLIP_MEAN, ImageEncoder, load_image_encoder
from imprompt.errors import UnknownModel


@pytest.fixture
def encoder() -> ImageEncoder:
    return ImageEncoder(tiny.vision_model())


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [tiny.picture(seed=1), tiny.picture(seed=2, width=64, height=90)]


def test_pixels_equal_those_of_transformers(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    expected = tiny.image_processor()(pictures, return_tensors="pt").pixel_values
    torch.testing.assert_close(encoder.pixels(pictures), expected, rtol=0, atol=1e-6)


def test_the_embedding_is_the_projected_one(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    pixels = encoder.pixels(pictures)
    assert torch.equal(encoder.encode(pixels), tiny.vision_model()(pixels).image_embeds)
    assert encoder.encode(pixels).shape == (2, encoder.embedding_dim)


def test_the_features_are_the_last_hidden_states_but_one(
    encoder: ImageEncoder, pictures: list[Image.Image]
) -> None:
    pixels = encoder.pixels(pictures)
    hidden = tiny.vision_model()(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(encoder.features(pixels), hidden[-2])
    assert encoder.features(pixels).shape == (2, 5, encoder.feature_dim)


def test_it_is_frozen_and_gives_no_gradients(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training
    assert not encoder.encode(encoder.pixels(pictures).requires_grad_()).requires_grad


def test_it_takes_pixels_in_another_type(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    pixels = encoder.pixels(pictures)
    exact = encoder.encode(pixels)
    rounded = encoder.to(torch.bfloat16).encode(pixels)
    assert encoder.dtype == rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_a_saved_folder_loads_with_its_own_mean_and_deviation(
    tmp_path: Path, pictures: list[Image.Image]
) -> None:
    tiny.vision_model().save_pretrained(tmp_path)
    plain = load_image_encoder(tmp_path)
    assert plain.mean == CLIP_MEAN
    processor = tiny.image_processor()
    processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path)
    loaded = load_image_encoder(str(tmp_path))
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert torch.equal(loaded.encode(plain.pixels(pictures)), plain.encode(plain.pixels(pictures)))


def test_a_model_is_wrapped() -> None:
    assert load_image_encoder(tiny.vision_model()).embedding_dim == tiny.EMBEDDING_DIM


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no image encoder at"):
        load_image_encoder(tmp_path)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="nowhere"):
        load_image_encoder(tmp_path / "nowhere")
