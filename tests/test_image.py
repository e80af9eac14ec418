"""The image prompt: what goes in and what is refused."""

import contextlib
import io
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imprompt.errors import ImageError
from imprompt.inputs import image
from imprompt.inputs.image import load_image

RED, WHITE = (255, 0, 0), (255, 255, 255)
ARROW = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [99, 99, 99], [200, 200, 200]]], np.uint8
)


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int, content: bytes = b"") -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", content),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def pixel(picture: Image.Image, x: int, y: int = 0) -> tuple[int, ...]:
    return tuple(np.asarray(picture)[y, x].tolist())


# Laws


def test_a_file_a_picture_and_an_array_are_the_same_image_prompt(tmp_path: Path) -> None:
    picture = random_picture(31, 17)
    picture.save(tmp_path / "x.png")
    as_bytes = {
        load_image(source).tobytes()
        for source in (picture, np.asarray(picture), tmp_path / "x.png", str(tmp_path / "x.png"))
    }
    assert as_bytes == {picture.tobytes()}


def test_loading_twice_changes_nothing() -> None:
    once = load_image(random_picture(31, 17).convert("CMYK"))
    assert load_image(once).tobytes() == once.tobytes()


def test_the_result_shares_no_memory_with_the_source() -> None:
    picture = random_picture(4, 4)
    load_image(picture).putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) != (1, 2, 3)


# What works


@pytest.mark.parametrize(
    "name", ["x.png", "x.webp", "x.gif", "x.bmp", "x.tiff", "x.avif", "x.jpg", "no-suffix", "wrong.txt"]
)
def test_formats_are_told_by_content(tmp_path: Path, name: str) -> None:
    kind = {"no-suffix": "png", "wrong.txt": "png", "x.jpg": "jpeg"}.get(name, name.partition(".")[2])
    Image.new("RGB", (8, 6), RED).save(tmp_path / name, format=kind)
    color = pixel(load_image(tmp_path / name), 3, 3)
    assert np.abs(np.subtract(color, RED)).max() <= 2  # JPEG, WebP and AVIF are lossy


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = Image.fromarray(ARROW).resize((48, 32), Image.Resampling.NEAREST)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(
        tmp_path / "x",
        format=kind,
        exif=exif,
        **({"quality": 95} if kind in ("jpeg", "webp", "avif") else {}),
    )
    loaded = load_image(tmp_path / "x")
    assert loaded.size == upright.size
    assert np.abs(np.asarray(loaded, int) - np.asarray(upright, int)).mean() < 8


def test_transparency_is_composited_on_the_background() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 128))
    assert pixel(load_image(half), 0, 0) == WHITE
    assert pixel(load_image(half, background=(0, 0, 255)), 0, 0) == (0, 0, 255)
    assert pixel(load_image(half, background=(0, 0, 255)), 1, 0) == (128, 0, 127)


def test_a_palette_with_transparency_works(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "x.png", transparency=0)
    loaded = load_image(tmp_path / "x.png")
    assert (pixel(loaded, 0, 0), pixel(loaded, 1, 0)) == (WHITE, (0, 255, 0))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 255, 0))]
    for kind in ("gif", "webp", "png", "tiff"):
        options = {"lossless": True} if kind == "webp" else {}
        frames[0].save(tmp_path / "x", format=kind, save_all=True, append_images=frames[1:], **options)
        assert pixel(load_image(tmp_path / "x"), 4, 4) == RED, kind


def test_cmyk_works(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    color = pixel(load_image(tmp_path / "x.jpg"), 4, 4)
    assert np.abs(np.subtract(color, RED)).max() <= 2


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 257, 128, 129, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x", format=kind)
    grey = np.asarray(load_image(tmp_path / "x"))[0, :, 0]
    assert grey.tolist() == [0, 1, 0, 1, 128, 255]


def test_a_transparent_value_in_16_bit_grey_becomes_background(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[100, 60000]], np.uint16))
    picture.info["transparency"] = 100
    assert pixel(load_image(picture), 0, 0) == WHITE
    assert pixel(load_image(picture), 1, 0) == (233, 233, 233)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_of_pictures(mode: str) -> None:
    assert load_image(random_picture(5, 7).convert(mode)).mode == "RGB"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_of_one_three_and_four_channels(channels: int) -> None:
    assert load_image(np.zeros((2, 3, channels), np.uint8)).size == (3, 2)


# What is refused, and how


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as raised:
        load_image(source)  # pyright: ignore[reportArgumentType]
    return str(raised.value)


def test_a_missing_file() -> None:
    assert refusal("cat.png") == "cat.png: no such file"


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a folder, not a picture"


def test_a_name_that_no_file_can_have() -> None:
    assert "cannot be read" in refusal("a\0b.png")
    assert "cannot be read" in refusal("a" * 5000)


@pytest.mark.parametrize("content", [b"just text", b"%PDF-1.7", b"<svg/>", b"RIFF\0\0\0\0WAVEfmt ", b"\0"])
def test_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert "x.png is not a picture: its content is not PNG, JPEG" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("brands", [b"isom\0\0\0\0iso2avc1mp41", b"mp42\0\0\0\0", b"crx ", b""])
def test_films_and_camera_files_in_the_container_of_avif_are_no_pictures(
    brands: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x.heic").write_bytes(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands)
    assert "x.heic is not a picture: its content is not PNG, JPEG" in refusal(tmp_path / "x.heic")


def container(*brands: bytes) -> bytes:
    """The beginning of a picture in the ISO container."""
    names = b"".join((brands[0], b"\0\0\0\0", *brands[1:]))
    return struct.pack(">I", 8 + len(names)) + b"ftyp" + names


@pytest.mark.parametrize("brands", [(b"avif",), (b"avis", b"mif1"), (b"mif1", b"miaf", b"avif")])
@pytest.mark.parametrize("is_there", [True, False])
def test_avif_where_pillow_cannot_read_it_is_answered_with_the_remedy(
    is_there: bool, brands: tuple[bytes, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_there:  # built without it
        monkeypatch.setattr("PIL.AvifImagePlugin.SUPPORTED", False)
    else:  # before 11.3
        monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)
    (tmp_path / "x.png").write_bytes(container(*brands))
    answer = refusal(tmp_path / "x.png")
    assert "x.png is an AVIF picture, which this Pillow (" in answer
    assert "cannot read: install 11.3 or later" in answer
    assert "or save the picture as PNG" in answer


@pytest.mark.parametrize("brands", [(b"heic", b"mif1"), (b"mif1", b"heic"), (b"msf1", b"hevc"), (b"heix",)])
def test_heic_without_its_reader_is_answered_with_the_remedy(
    brands: tuple[bytes, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.jpg").write_bytes(container(*brands))
    assert refusal(tmp_path / "x.jpg").endswith(
        "x.jpg is a HEIC picture: install its reader (pip install pillow-heif), or save it as PNG"
    )


def test_heic_is_read_by_pillow_heif_if_that_is_installed(tmp_path: Path) -> None:
    heif: Any = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (40, 30), RED)).save(tmp_path / "x.heic", quality=90)
    loaded = load_image(tmp_path / "x.heic")
    assert loaded.size == (40, 30)
    assert np.abs(np.subtract(pixel(loaded, 20, 15), RED)).max() <= 4


def test_a_transparent_avif_is_composited(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(tmp_path / "x.avif")
    assert np.abs(np.subtract(pixel(load_image(tmp_path / "x.avif"), 3, 3), WHITE)).max() <= 2


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    assert refusal(tmp_path / "x.png").endswith("x.png is empty")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "avif"])
def test_truncated_pictures_at_any_length(kind: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    random_picture(40, 40).save(content, format=kind)
    whole = content.getvalue()
    for length in (12, 20, 40, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        (tmp_path / "x").write_bytes(whole[:length])
        assert "truncated or damaged" in refusal(tmp_path / "x"), length


def test_a_header_of_30000_by_30000_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_header(30_000, 30_000))
    assert "x.png has 30000 × 30000 pixels; the limit is 67108864" in refusal(tmp_path / "x.png")


def test_the_limit_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_PIXELS", 12)
    assert load_image(random_picture(3, 4)).size == (3, 4)
    assert "3 × 5 pixels" in refusal(random_picture(3, 5))


def test_grey_of_unknown_range() -> None:
    assert "floating-point values of unknown range" in refusal(Image.new("F", (2, 2)))
    assert "32-bit integer values of unknown range" in refusal(Image.new("I", (2, 2)))


def test_arrays_that_are_no_pictures() -> None:
    assert "must be uint8" in refusal(np.zeros((4, 4, 3), np.float32))
    assert "must be uint8" in refusal(np.zeros((4, 4, 2), np.uint8))
    assert "must be uint8" in refusal(np.zeros((4, 4), np.uint8))
    assert "has no pixels" in refusal(np.zeros((0, 4, 3), np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*image._READERS, container(b"avif")]), st.binary(max_size=200))
def test_noise_behind_a_signature_gives_a_picture_or_our_error(magic: bytes, noise: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(magic + noise)
        file.flush()
        with contextlib.suppress(ImageError):
            assert load_image(file.name).mode == "RGB"
