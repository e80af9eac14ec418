"""What people hand over as a picture or as embeddings and is none: the message names what it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import adapter_files
import tiny
from imprompt import Reference
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import AdapterMismatch, ImageError, ImpromptError, InvalidReference
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.inputs.encoder import load_image_encoder
from imprompt.inputs.image import load_image
from imprompt.reference import _load_images


def adapter_of(variant: str) -> ImagePromptAdapter:
    adapter = adapter_files.adapter(tiny.sd_unet(), variant)
    adapter.image_encoder = load_image_encoder(tiny.vision_model(seed=3))
    return adapter


@pytest.mark.parametrize("patches", [1, 4, 6, 257])
@pytest.mark.parametrize("with_negative", [True, False])
@pytest.mark.parametrize("with_blank", [True, False])
def test_features_of_another_number_of_patches_are_refused_with_both_numbers(
    patches: int, with_negative: bool, with_blank: bool
) -> None:
    adapter, features = adapter_of("plus"), torch.randn(1, patches, 24)
    given: Any = features
    if with_blank:
        given = ImageEmbeddings({"image_features": features}, {"image_features": torch.zeros(patches, 24)})
    reference = Reference(given, negative=torch.zeros(1, patches, 24) if with_negative else None)
    with pytest.raises(AdapterMismatch, match=rf"have {patches} patches .* makes 5"):
        adapter.encode(reference)


def test_the_encoder_tells_how_many_patches_it_makes() -> None:
    encoder = load_image_encoder(tiny.vision_model())
    assert encoder.patches == encoder.features(torch.zeros(1, 3, 28, 28)).shape[1] == 5


def test_features_of_a_batch_of_pictures_are_not_taken_for_pixels() -> None:
    adapter = adapter_of("plus")
    for images in (1, 3, 4):
        assert adapter.encode(Reference(torch.randn(images, 5, 24))).images == images
        assert adapter.encode(Reference(torch.zeros(images, 5, 24))).images == images


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize(
    "shape",
    [(3, 64, 64), (3, 20, 24), (4, 32, 24), (64, 48, 3), (1, 3, 64, 64), (2, 3, 9, 24), (1, 64, 64, 3)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_tensor_of_pixels_is_recognised_as_one(
    dtype: torch.dtype, shape: tuple[int, ...], variant: str
) -> None:
    pixels = torch.rand(shape).mul(255 if dtype == torch.uint8 else 1).to(dtype)
    with pytest.raises(InvalidReference, match="holds pixels, not image embeddings: give the picture as"):
        adapter_of(variant).encode(Reference(pixels))


@pytest.mark.parametrize(
    "address", ["https://example.com/cat.png", "HTTP://a/b", "s3://b/c", "data:image/png;base64,AA"]
)
def test_an_address_is_named_whole_and_said_not_to_be_fetched(address: str) -> None:
    with pytest.raises(ImageError, match="is a URL, and imprompt fetches no URLs") as caught:
        load_image(address)
    assert address in str(caught.value)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_named(kind: Callable[[bytes], Any]) -> None:
    with pytest.raises(InvalidReference, match=r"not bytes: open an encoded picture with PIL"):
        _load_images(kind(b"\x89PNG\r\n\x1a\n"))


def test_a_list_with_bytes_or_with_pixels_is_named() -> None:
    for one, word in ((b"abc", "bytes"), (torch.rand(3, 9, 9), "pixels")):
        with pytest.raises(ImpromptError, match=word):
            _load_images([one])


def test_a_picture_whose_file_is_closed_is_named(tmp_path: Any) -> None:
    tiny.picture().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(ImageError, match=r"the file of .*a\.png is closed and its pixels were never read"):
        load_image(closed)
    with Image.open(tmp_path / "a.png") as read:
        read.load()
    assert np.array_equal(np.asarray(load_image(read)), np.asarray(tiny.picture()))
