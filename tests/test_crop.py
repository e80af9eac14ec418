"""What the encoder sees of a picture: windows, whole pictures, tiles, and spoilt pictures."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from imprompt.errors import InvalidReference
from imprompt.inputs.choices import Noise
from imprompt.inputs.crop import Crop, check_crop, encoder_pixels, encoder_view, noise_image, split_into_tiles
from imprompt.inputs.encoder import CLIP_MEAN, CLIP_STD

WINDOWS = {"center": (0.5, 0.5), "top": (0.5, 0), "bottom": (0.5, 1), "left": (0, 0.5), "right": (1, 0.5)}
EVERY_NAME: list[Crop] = [*WINDOWS, "pad", "stretch", "tiles"]  # pyright: ignore[reportAssignmentType]
KINDS: list[Noise] = ["fade", "dissolve", "gaussian", "shuffle"]

sides = st.integers(1, 90)
sizes = st.sampled_from([28, 32, 47])
shares = st.floats(0, 1) | st.sampled_from([0, 1])


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and one.size == other.size and one.tobytes() == other.tobytes()


def transpose_picture(picture: Image.Image) -> Image.Image:
    """Width and height exchanged."""
    return picture.transpose(Image.Transpose.TRANSPOSE)


def ramp(width: int, height: int) -> Image.Image:
    """Grey that grows from left to right in equal steps, from 0 to 255."""
    row = np.linspace(0, 255, width).round().astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row[None, :, None], (height, width, 3)).copy())


# Laws of the views


@settings(max_examples=30)
@given(sides, sides, sizes)
def test_centre_is_what_the_image_processor_of_transformers_makes(width: int, height: int, size: int) -> None:
    assume(max(width, height) <= 16 * min(width, height))  # ours cuts such a thread first; see below
    picture = random_picture(width, height)
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    expected = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"][0])
    ours = encoder_pixels(picture, size, mean=CLIP_MEAN, std=CLIP_STD)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(sides, sides, sizes, shares, shares)
def test_a_position_is_a_slice_of_the_resized_picture(
    width: int, height: int, size: int, x: float | int, y: float | int
) -> None:
    assume(max(width, height) <= 16 * min(width, height))
    picture = random_picture(width, height)
    longer = int(size * max(width, height) / min(width, height))
    shape = (size, longer) if width <= height else (longer, size)
    resized = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
    left, top = int(x * (shape[0] - size)), int(y * (shape[1] - size))
    expected = resized[top : top + size, left : left + size]
    assert np.array_equal(np.asarray(encoder_view(picture, size, (x, y))), expected)


@settings(max_examples=30)
@given(sides, sides, sizes)
def test_the_named_windows_are_positions(width: int, height: int, size: int) -> None:
    picture = random_picture(width, height)
    for name, position in WINDOWS.items():
        assert same(encoder_view(picture, size, name), encoder_view(picture, size, position)), name


@settings(max_examples=30)
@given(sides, sizes)
def test_of_a_square_picture_every_crop_shows_the_same(side: int, size: int) -> None:
    picture = random_picture(side, side)
    center = encoder_view(picture, size)
    for crop in (*EVERY_NAME, (0, 0), (0.3, 1)):
        assert same(encoder_view(picture, size, crop), center), crop


@settings(max_examples=30)
@given(sides, sides, sizes, st.sampled_from(["stretch", "pad"]))
def test_the_whole_picture_looks_alike_upright_and_lying(
    width: int, height: int, size: int, crop: str
) -> None:
    assume(width != height)
    picture = random_picture(width, height)
    lying = transpose_picture(encoder_view(transpose_picture(picture), size, crop))
    assert same(encoder_view(picture, size, crop), lying)


@pytest.mark.parametrize("width", [32, 64, 90, 320])
def test_a_stretched_ramp_is_a_ramp(width: int) -> None:
    seen = np.asarray(encoder_view(ramp(width, 20), 32, "stretch"), int)[:, :, 0]
    assert (seen == seen[0]).all()  # constant down the columns
    # A pixel's middle lies at (i + 1/2) / 32 of the picture, and the source's values at (j + 1/2) / width.
    expected = ((np.arange(32) + 0.5) * width / 32 - 0.5) / (width - 1) * 255
    inner = slice(2, -2)  # at the border a bicubic filter sees less than its support
    assert np.abs(seen[0] - expected)[inner].max() <= 1


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), sizes)
def test_padding_keeps_the_proportions_and_is_white(width: int, height: int, size: int) -> None:
    black = Image.new("RGB", (width, height))
    seen = np.asarray(encoder_view(black, size, "pad"))
    inside = [max(1, round(size * side / max(width, height))) for side in (width, height)]
    expected = np.full((size, size, 3), 255, np.uint8)
    left, top = ((size - side) // 2 for side in inside)
    expected[top : top + inside[1], left : left + inside[0]] = 0
    assert np.array_equal(seen, expected)


# Laws of the tiles


@settings(max_examples=30)
@given(st.integers(1, 40), st.floats(1, 4), st.booleans())
def test_the_areas_partition_the_picture_and_each_tile_covers_its_own(
    side: int, ratio: float, wide: bool
) -> None:
    length = int(side * ratio)
    made = split_into_tiles(random_picture(*((length, side) if wide else (side, length))))
    along, across = (slice(0, None, 2), slice(1, None, 2)) if wide else (slice(1, None, 2), slice(0, None, 2))
    spans = [tile.area[along] for tile in made]
    assert all(tile.area[across] == (0, 1) for tile in made)
    assert [spans[0][0], spans[-1][1]] == [0, 1]
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))  # not a gap, not an overlap
    assert all(first < last for first, last in spans)
    starts = [round(index * (length - side) / max(1, len(made) - 1)) for index in range(len(made))]
    for start, (first, last) in zip(starts, spans, strict=True):
        assert start - 1 <= first * length
        assert last * length <= start + side + 1


@settings(max_examples=30)
@given(st.integers(1, 40), st.floats(1, 4), st.booleans())
def test_tiles_are_squares_that_show_every_pixel(side: int, ratio: float, wide: bool) -> None:
    length = int(side * ratio)
    picture = random_picture(length, side)
    made = split_into_tiles(picture if wide else transpose_picture(picture))
    squares = [tile.picture if wide else transpose_picture(tile.picture) for tile in made]
    assert all(square.size == (side, side) for square in squares)
    assert len(made) == -(-length // side)
    starts = [find_place(square, picture) for square in squares]
    assert [starts[0], starts[-1]] == [0, length - side]
    assert all(other - one <= side for one, other in itertools.pairwise(starts))


def find_place(square: Image.Image, picture: Image.Image) -> int:
    """Where in a wide random picture a square is; a picture so small that it repeats itself is not drawn."""
    pixels, whole = np.asarray(square), np.asarray(picture)
    places = range(whole.shape[1] - pixels.shape[1] + 1)
    return next(x for x in places if np.array_equal(whole[:, x : x + pixels.shape[1]], pixels))


def test_a_square_is_its_own_tile() -> None:
    picture = random_picture(20, 20)
    (tile,) = split_into_tiles(picture)
    assert same(tile.picture, picture)
    assert tile.area == (0, 0, 1, 1)


def test_the_tiles_of_250_by_100() -> None:
    made = split_into_tiles(random_picture(250, 100))
    assert [tile.area for tile in made] == [(0, 0, 0.35, 1), (0.35, 0, 0.65, 1), (0.65, 0, 1, 1)]
    assert same(made[1].picture, random_picture(250, 100).crop((75, 0, 175, 100)))


def test_four_to_one_is_the_limit() -> None:
    assert len(split_into_tiles(random_picture(10, 40))) == 4
    with pytest.raises(InvalidReference, match="a picture of 10 × 41 pixels is longer than 4:1"):
        split_into_tiles(random_picture(10, 41))


# Laws of the noise


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_picture_and_another_another(kind: Noise) -> None:
    picture, state = random_picture(40, 30), torch.get_rng_state()
    one, again, other = (noise_image(picture, kind, 0.4, seed) for seed in (3, 3, 4))
    assert same(one, again)
    assert not same(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["fade", "dissolve", "gaussian"])
def test_no_noise_is_the_picture_as_the_encoder_sees_it(kind: Noise) -> None:
    picture = random_picture(40, 30)
    spoilt = noise_image(picture, kind, 0, 1, size=30)
    assert same(spoilt, picture)
    assert same(encoder_view(noise_image(picture, kind, 0, 1), 224), encoder_view(picture, 224))


def test_an_unshuffled_picture_is_turned_by_180_degrees() -> None:
    picture = random_picture(40, 30)
    assert same(noise_image(picture, "shuffle", 0, 1, size=30), picture.transpose(Image.Transpose.ROTATE_180))


@pytest.mark.parametrize("kind", ["fade", "dissolve"])
def test_full_noise_knows_nothing_of_the_picture(kind: Noise) -> None:
    one, other = (noise_image(random_picture(40, 30, seed), kind, 1, 7, size=30) for seed in (1, 2))
    assert same(one, other)
    values = np.asarray(one) / 255
    assert abs(values.mean() - 1 / 2) < 0.02  # of 3,600 uniform values: 1/2 and 1/√12
    assert abs(values.std() - 12**-0.5) < 0.02


def test_a_share_of_the_pixels_dissolves() -> None:
    before = np.asarray(random_picture(200, 100))
    after = np.asarray(noise_image(Image.fromarray(before), "dissolve", 0.3, 1, size=100))
    assert abs((before != after).any(axis=2).mean() - 0.3) < 0.015


def test_fading_is_a_blend_and_gaussian_noise_has_the_deviation_asked_for() -> None:
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    faded = np.asarray(noise_image(grey, "fade", 0.5, 1, size=100)) / 255
    assert 0.249 <= faded.min() < 0.26
    assert 0.74 < faded.max() <= 0.753
    noisy = np.asarray(noise_image(grey, "gaussian", 0.1, 1, size=100)) / 255
    assert abs(noisy.std() - 0.1) < 0.003


def test_shuffling_moves_the_pixels_and_keeps_the_colours() -> None:
    picture = random_picture(6, 6).resize((60, 60), Image.Resampling.BICUBIC)
    before, after = (
        np.asarray(picture, float),
        np.asarray(noise_image(picture, "shuffle", 0.5, 1, size=60), float),
    )
    assert np.abs(before[::-1, ::-1] - after).mean() > 20
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 20


@pytest.mark.parametrize(("width", "height", "expected"), [(40, 30, (298, 224)), (500, 1000, (224, 448))])
def test_a_spoilt_picture_is_as_large_as_the_encoder_sees_it(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    assert noise_image(random_picture(width, height), "fade", 0.5, 0).size == expected


# Edges and failures


@pytest.mark.parametrize("crop", [name for name in EVERY_NAME if name != "tiles"])
@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1), (1, 1)])
def test_a_thread_of_pixels_does_not_grow_into_a_giant(crop: Crop, width: int, height: int) -> None:
    pixels = encoder_pixels(random_picture(width, height), 28, mean=CLIP_MEAN, std=CLIP_STD, crop=crop)
    assert pixels.shape == (3, 28, 28)


def test_the_end_of_a_thread_is_its_end() -> None:
    thread = random_picture(1, 1000)
    end = thread.crop((0, 984, 1, 1000))
    assert same(encoder_view(thread, 28, "bottom"), encoder_view(end, 28, "bottom"))


def test_other_modes_are_seen_as_rgb() -> None:
    grey = random_picture(20, 30).convert("L")
    assert same(encoder_view(grey, 28, "top"), encoder_view(grey.convert("RGB"), 28, "top"))


def test_the_source_stays_as_it_was() -> None:
    picture = random_picture(30, 30)
    before = picture.tobytes()
    for crop in EVERY_NAME:
        encoder_view(picture, 30, crop).putpixel((0, 0), (1, 2, 3))
    noise_image(picture, "shuffle", 1, 0, size=30)
    split_into_tiles(picture)[0].picture.putpixel((0, 0), (1, 2, 3))
    assert picture.tobytes() == before


def test_the_earlier_spelling_of_center_is_accepted() -> None:
    picture = random_picture(40, 30)
    assert same(encoder_view(picture, 28, "centre"), encoder_view(picture, 28, "center"))


def test_an_unknown_name_is_refused_and_the_known_ones_are_told() -> None:
    with pytest.raises(InvalidReference) as raised:
        encoder_view(random_picture(2, 3), 28, "middle")
    known = "center, top, bottom, left, right, pad, stretch, tiles, native or a position (x, y) of two"
    assert str(raised.value) == f"crop must be {known} numbers 0–1, not 'middle'"


@pytest.mark.parametrize(
    "crop", [(0.5,), (0, 0, 0), (-0.1, 0), (0, 1.1), (float("nan"), 0), (True, 0), None, 3]
)
def test_what_is_no_position_is_refused(crop: object) -> None:
    with pytest.raises(InvalidReference, match="crop must be"):
        check_crop(crop)


def test_several_views_are_not_one() -> None:
    with pytest.raises(InvalidReference, match="'tiles' makes several views of a picture of 20 × 30 pixels"):
        encoder_view(random_picture(20, 30), 28, "tiles")


@pytest.mark.parametrize(
    ("kind", "amount", "seed", "message"),
    [
        ("blur", 0.5, 0, "noise must be fade, dissolve, gaussian, shuffle, not 'blur'"),
        ("fade", 1.5, 0, "from 0 to 1, not 1.5"),
        ("fade", float("nan"), 0, "from 0 to 1, not nan"),
        ("fade", 0.5, -1, "must be 0 or more, not -1"),
    ],
)
def test_noise_that_cannot_be_made(kind: str, amount: float, seed: int, message: str) -> None:
    with pytest.raises(InvalidReference, match=message):
        noise_image(random_picture(8, 8), kind, amount, seed)
