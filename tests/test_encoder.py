"""Image encoders: frozen, equal to transformers', loaded from folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from imprompt.errors import AdapterMismatch, UnknownModel
from imprompt.inputs.choices import Input
from imprompt.inputs.crop import encoder_view
from imprompt.inputs.encoder import CLIP_MEAN, ImageEncoder, load_image_encoder


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


@pytest.mark.parametrize(
    "names", [["image_embedding"], ["image_features"], ["image_features", "image_embedding"], []]
)
def test_both_inputs_come_of_one_run(
    encoder: ImageEncoder, pictures: list[Image.Image], names: list[Input]
) -> None:
    pixels = encoder.pixels(pictures)
    expected = {"image_embedding": encoder.encode(pixels), "image_features": encoder.features(pixels)}
    runs: list[object] = []
    encoder.model.register_forward_hook(lambda *_: runs.append(1))
    inputs = encoder.inputs(pixels, names)
    assert len(runs) == 1
    assert list(inputs) == names
    assert all(torch.equal(inputs[name], expected[name]) for name in names)


def test_the_blank_embedding_is_zero_and_the_blank_features_are_those_of_zero_pixels(
    encoder: ImageEncoder,
) -> None:
    assert torch.equal(encoder.blank("image_embedding"), torch.zeros(tiny.EMBEDDING_DIM))
    zeros = torch.zeros(1, 3, 28, 28)
    hidden = tiny.vision_model()(zeros, output_hidden_states=True).hidden_states[-2][0]
    assert torch.equal(encoder.blank("image_features"), hidden)


def test_a_blank_is_made_once_and_again_after_a_move(encoder: ImageEncoder) -> None:
    runs: list[object] = []
    encoder.model.register_forward_hook(lambda *_: runs.append(1))
    exact = encoder.blank("image_features")
    assert encoder.blank("image_features") is exact
    assert len(runs) == 1
    rounded = encoder.to(torch.bfloat16).blank("image_features")
    assert rounded.dtype == encoder.blank("image_embedding").dtype == torch.bfloat16
    again = encoder.to(torch.float32).blank("image_features")
    assert not torch.equal(again, exact)  # the weights have been rounded
    encoder.model.double()  # moved behind our back
    assert encoder.blank("image_features").dtype == torch.float64


def test_a_blank_made_in_inference_mode_serves_training(encoder: ImageEncoder) -> None:
    weight = torch.ones(encoder.feature_dim, requires_grad=True)
    with torch.inference_mode():
        encoder.blank("image_features")
    (encoder.blank("image_features") @ weight).sum().backward()
    assert weight.grad is not None


def test_no_image_encoder_makes_face_embeddings(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    with pytest.raises(AdapterMismatch, match="no face embedding; set adapter"):
        encoder.inputs(encoder.pixels(pictures), ["image_embedding", "face_embedding"])
    with pytest.raises(AdapterMismatch, match="no face embedding"):
        encoder.blank("face_embedding")


def test_the_crop_decides_what_is_seen(encoder: ImageEncoder) -> None:
    tall = tiny.picture(width=40, height=80)
    top = encoder_view(tall, 28, "top")
    assert torch.equal(encoder.pixels([tall], "top"), encoder.pixels([top]))
    assert not torch.equal(encoder.pixels([tall], "top"), encoder.pixels([tall]))
    assert torch.equal(encoder.pixels([tall], crop="center"), encoder.pixels([tall]))


def test_its_name_is_given_or_where_it_came_from_or_its_shape(tmp_path: Path) -> None:
    assert ImageEncoder(tiny.vision_model(), name="my encoder").name == "my encoder"
    described = ImageEncoder(tiny.vision_model()).name
    assert described == "CLIP ViT/14 for 28 px, 3 layers 24 wide, embedding 14 wide"
    tiny.vision_model().save_pretrained(tmp_path)
    assert load_image_encoder(tmp_path).name == tmp_path.name
    assert ImageEncoder(load_image_encoder(tmp_path).model).name == tmp_path.name


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


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut": cut_weights,
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights no weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 500),
    "weights gone": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of other shapes": other_shapes,
    "configuration cut": lambda folder: (folder / "config.json").write_text('{"hidden'),
    "configuration a list": lambda folder: (folder / "config.json").write_text("[]"),
    "configuration deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "sizes are words": lambda folder: (folder / "config.json").write_text('{"hidden_size": "a"}'),
    "preprocessor cut": lambda folder: (folder / "preprocessor_config.json").write_text("{"),
    "preprocessor a list": lambda folder: (folder / "preprocessor_config.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_encoder_is_one_sentence(tmp_path: Path, damage: str) -> None:
    tiny.vision_model().save_pretrained(tmp_path / "encoder")
    DAMAGES[damage](tmp_path / "encoder")
    with pytest.raises(UnknownModel, match=r"no image encoder at .*encoder: .") as raised:
        load_image_encoder(tmp_path / "encoder")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
