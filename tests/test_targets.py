"""Targets: the official script's rule without buckets, and what buckets promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

import tiny
from imprompt.errors import ImageError
from imprompt.training.config import DataSettings
from imprompt.training.targets import choose_target_size, list_buckets, make_mask, make_target

few = examples(max_examples=30)

sides = st.integers(1, 90)
settings = st.builds(
    DataSettings,
    size=st.integers(1, 6).map(lambda steps: 16 * steps),
    buckets=st.booleans(),
    bucket_step=st.sampled_from([8, 16]),
    longest=st.floats(1, 4),
)


def official(picture: Image.Image, size: int) -> np.ndarray:
    """torchvision's Resize and CenterCrop on a PIL picture, written from their definitions."""
    width, height = picture.size
    short, long = sorted(picture.size)
    new_long = int(size * long / short)
    shape = (size, new_long) if width <= height else (new_long, size)
    resized = np.asarray(picture.resize(shape, Image.Resampling.BILINEAR))
    top, left = (int(round((side - size) / 2.0)) for side in resized.shape[:2])  # noqa: RUF046
    return resized[top : top + size, left : left + size]


@few
@given(width=sides, height=sides, size=st.integers(8, 64))
def test_without_buckets_a_target_is_the_official_scripts(width: int, height: int, size: int) -> None:
    picture = tiny.picture(width=width, height=height)
    target = make_target(picture, DataSettings(size=size)).pixels
    expected = (torch.from_numpy(official(picture, size).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.equal(target, expected)


def test_a_known_picture_is_cut_where_torchvision_cuts_it() -> None:
    # 37 × 31 → 19 × 16 (16 · 37 / 31 = 19.1); the corner (19 - 16) / 2 = 1.5 rounds to the even 2.
    target = make_target(tiny.picture(width=37, height=31), DataSettings(size=16))
    assert target.size_condition == (31, 37, 0, 2, 16, 16)


@few
@given(width=sides, height=sides, data=settings)
def test_a_target_is_a_window_of_the_resized_picture(width: int, height: int, data: DataSettings) -> None:
    picture = tiny.picture(width=width, height=height)
    target = make_target(picture, data)
    wide, high = choose_target_size(width, height, data)
    assert target.pixels.shape == (3, high, wide)
    assert target.pixels.abs().max() <= 1
    original_height, original_width, top, left, target_height, target_width = target.size_condition
    assert (original_width, original_height, target_width, target_height) == (width, height, wide, high)
    # One side fits exactly; of the other at most half of what is too much is cut off on each side.
    assert min(top, left) == 0
    assert 0 <= left <= (max(wide, high * width / height) - wide) / 2 + 1
    assert 0 <= top <= (max(high, wide * height / width) - high) / 2 + 1


@few
@given(data=settings)
def test_buckets_are_multiples_of_the_step_and_no_larger_than_the_square(data: DataSettings) -> None:
    every = list_buckets(data)
    assert len(set(every)) == len(every)
    assert every == sorted(every, key=lambda bucket: bucket[0] / bucket[1])
    assert {(height, width) for width, height in every} == set(every)
    for width, height in every:
        assert width * height <= data.size**2
        if data.buckets:
            assert width % data.bucket_step == height % data.bucket_step == 0
            assert max(width, height) <= data.longest * min(width, height)
            assert (max(width, height) + data.bucket_step) * min(width, height) > data.size**2
    assert (data.size, data.size) in every


@few
@given(width=sides, height=sides, data=settings)
def test_a_picture_gets_the_bucket_nearest_in_proportions(
    width: int, height: int, data: DataSettings
) -> None:
    def distance(bucket: tuple[int, int]) -> float:
        return abs(math.log(bucket[0] / bucket[1]) - math.log(width / height))

    chosen = choose_target_size(width, height, data)
    assert distance(chosen) == min(distance(bucket) for bucket in list_buckets(data))


def test_the_buckets_of_sdxl_have_about_the_area_of_1024() -> None:
    every = list_buckets(DataSettings(size=1024, buckets=True))
    assert (1024, 1024) in every
    assert (832, 1216) in every
    assert (1344, 768) in every


@few
@given(width=sides, height=sides, data=settings)
def test_a_mask_is_cut_as_its_picture(width: int, height: int, data: DataSettings) -> None:
    grey = tiny.picture(width=width, height=height).convert("L")
    target = make_target(grey.convert("RGB"), data).pixels
    mask = make_mask(grey, (width, height), data)
    assert torch.allclose(mask, (target[:1] + 1) / 2, atol=1e-6)


def test_a_mask_may_be_smaller_than_its_picture() -> None:
    white_left = Image.new("L", (20, 10))
    white_left.paste(255, (0, 0, 10, 10))
    mask = make_mask(white_left, (400, 200), DataSettings(size=64))
    assert mask.shape == (1, 64, 64)
    assert mask[..., :24].min() == 1
    assert mask[..., 40:].max() == 0


def test_a_mask_of_other_proportions_is_refused() -> None:
    with pytest.raises(ImageError, match="mask has 20 × 10 pixels, other proportions than its picture's 20"):
        make_mask(Image.new("L", (20, 10)), (20, 20), DataSettings(size=16))


def test_a_hair_thin_picture_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ImageError, match="1 × 9000 pixels is too thin for a target of 512 × 512"):
        make_target(Image.new("RGB", (1, 9000)), DataSettings())
