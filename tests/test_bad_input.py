"""Bad input on the command line: one line that says what is wrong, the exit code, and nothing written."""

import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tiny
from conftest import Result, ToyModel
from imprompt.runtime.picture_files import save_picture

Imprompt = Callable[..., Result]


class Intruder:
    """Unpickling this makes a file named `trace`."""

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (Path("trace"),)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: ToyModel) -> Path:
    """A folder with every kind of bad file, and one good picture."""
    monkeypatch.chdir(tmp_path)
    tiny.picture().save("cat.png")
    Path("text.png").write_text("not a picture")
    Path("cut.png").write_bytes(Path("cat.png").read_bytes()[:200])
    Path("empty.png").touch()
    Path("giant.png").write_bytes(png_header(30_000, 30_000))
    Path("line\nbreak.png").write_text("not a picture")
    Path("folder.png").mkdir()
    torch.save({"image_proj": Intruder()}, "code.bin")
    Path("plain.bin").write_bytes(pickle.dumps(Intruder()))
    tensors = safetensors.torch.load_file(toy.adapter)
    name = "ip_adapter.3.to_v_ip.weight"
    safetensors.torch.save_file(tensors | {name: tensors[name][1:].clone()}, "shape.safetensors")
    Path("cut.safetensors").write_bytes(toy.adapter.read_bytes()[:5000])
    save_picture(tiny.picture(), "ours.png", {"prompt": "x"})
    return tmp_path


LIMIT = 64 * 1024 * 1024
BAD: dict[str, tuple[str, int, str]] = {
    "a missing file": ("none.png", 1, "none.png: no such file"),
    "a second reference missing": ("cat.png none.png", 1, "none.png: no such file"),
    "text renamed .png": (
        "text.png",
        1,
        "text.png is not a picture: its content is not PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC",
    ),
    "a truncated PNG": (
        "cut.png",
        1,
        "cut.png is truncated or damaged: image file is truncated",
    ),
    "an empty file": ("empty.png", 1, "empty.png is empty"),
    "a giant header": (
        "giant.png",
        1,
        f"giant.png has 30000 × 30000 pixels; the limit is {LIMIT} in all, make it smaller",
    ),
    "an empty folder": (
        "folder.png",
        1,
        "the folder folder.png contains no pictures; give a picture, or a folder of them",
    ),
    "two folders": ("folder.png folder.png", 2, "folder.png and folder.png are folders; give one folder *"),
    "a URL": (
        "https://example.com/cat.png",
        1,
        "references[0].images[0]: https://example.com/cat.png is a URL, and imprompt fetches none; *",
    ),
    "an adapter as a picture": (
        "{toy.adapter}",
        1,
        "{toy.adapter} holds an adapter, not image embeddings; *",
    ),
    "an unknown base": (
        "cat.png --base frob",
        1,
        "no base model 'frob': no such folder, nor 'mini', nor a hub id (owner/name)",
    ),
    "a folder that is no base": (
        "cat.png --base folder.png",
        1,
        "folder.png is a folder without model_index.json, so no model in diffusers' format",
    ),
    "an unknown adapter": (
        "cat.png --adapter frob",
        1,
        "no adapter 'frob': no such file, nor 'mini' or 'mini-plus', nor a file on the hub (owner/name:file)",
    ),
    "a picture as an adapter": ("cat.png --adapter cat.png", 1, "cat.png is truncated or no adapter file: *"),
    "an adapter for another base": (
        "cat.png --adapter {toy.other_adapter}",
        1,
        "this adapter is for a model with 8 layers, 28-wide text; "
        "this base is a model with 4 layers, 20-wide text",
    ),
    "a pickle with code": (
        "cat.png --adapter code.bin",
        1,
        "code.bin holds more than tensors, perhaps code; it was refused, and nothing in it was run",
    ),
    "a plain pickle with code": ("cat.png --adapter plain.bin", 1, "plain.bin *"),
    "a wrong-shaped tensor": (
        "cat.png --adapter shape.safetensors",
        1,
        "shape.safetensors: ip_adapter.3.to_v_ip.weight has shape 15 × 20, not 16 × 20",
    ),
    "a truncated adapter": (
        "cat.png --adapter cut.safetensors",
        1,
        "cut.safetensors is truncated or no adapter file: *",
    ),
    "an unknown image encoder": (
        "cat.png --image-encoder frob/none",
        1,
        "the adapter {toy.adapter} needs an unknown image encoder, 14 wide; no image encoder at frob/none: *",
    ),
    "a missing output folder": (
        "cat.png --output none/out.png",
        1,
        "none/out.png cannot be written: there is no folder none; create it first: mkdir -p none",
    ),
    "a folder as output": (
        "cat.png --output folder.png",
        1,
        "folder.png cannot be written: it exists and is not a file",
    ),
    "a device as output": (
        "cat.png --output /dev/null",
        1,
        "/dev/null cannot be written: its name must end in .png or .jpg or .jpeg or .webp",
    ),
    "an output of another format": (
        "cat.png --output out.gif",
        1,
        "out.gif cannot be written: its name must end in .png or .jpg or .jpeg or .webp",
    ),
    "the reference as output": (
        "cat.png --output cat.png --overwrite",
        1,
        "cat.png is one of the files to be read; choose another name with --output",
    ),
    "a size between": ("cat.png --size 13", 1, "size must be a multiple of 8 pixels on this base, not 13"),
    "a size that is none": (
        "cat.png --size 64by96",
        2,
        "--size takes 512 or 512x768 (width x height), not '64by96' (see imprompt generate --help)",
    ),
    "an interval that is none": (
        "cat.png --guidance-interval 0.5",
        2,
        "--guidance-interval takes a start and an end, as in 0.2,0.8, not '0.5' "
        "(see imprompt generate --help)",
    ),
    "a width without a height": (
        "cat.png --width 64",
        1,
        "width and height belong together; give both, or size",
    ),
    "a size and a width": (
        "cat.png --size 64 --width 64",
        2,
        "--size sets width and height at once; leave out --width (see imprompt generate --help)",
    ),
    "too many steps": (
        "cat.png --steps 1001",
        1,
        "1001 steps are too many for this base's scheduler, DDIMScheduler",
    ),
    "a seed out of range": (f"cat.png --seed {2**63}", 1, f"a seed must be 0 to {2**63 - 1}, not {2**63}"),
    "a scale that is not finite": (
        "cat.png --scale nan",
        1,
        "references[0].scale must be a finite number, not nan",
    ),
    "a guidance scale that is not finite": (
        "cat.png --guidance-scale inf",
        1,
        "guidance_scale must be a finite number, not inf",
    ),
    "a scale that is no number": (
        "cat.png --scale abc",
        2,
        "Invalid value for '--scale': 'abc' is not a number (see imprompt generate --help)",
    ),
    "a scale for some of the references": (
        "cat.png cat.png cat.png --scale 1 --scale 2",
        2,
        "--scale is given 2 times for 3 references; give it once for all, or 3 times "
        "(see imprompt generate --help)",
    ),
    "an option beside a job": (
        "--job x.toml --scale 1",
        2,
        "--job can only be combined with --output, --overwrite, --seed and --count, not with *",
    ),
    "a control model alone": (
        "cat.png --control-model mini",
        2,
        "--control-model needs --control, which is missing (see imprompt generate --help)",
    ),
    "a strength alone": (
        "cat.png --strength 0.5",
        1,
        "strength is about init_image, and there is none; give the picture to start from",
    ),
    "an unknown mode": ("cat.png --mode styel", 1, "*"),
    "an unknown crop": ("cat.png --crop middle", 1, "references[0].crop must be 'center', *"),
    "a span that ends before it begins": (
        "cat.png --from 0.5 --until 0.2",
        1,
        "references[0]: start must be less than end, not 0.5 and 0.2",
    ),
    "like a picture of someone else": ("--like cat.png", 1, "cat.png holds no settings of imprompt"),
    "a job that is not there": ("cat.png --like none.png", 1, "none.png: no such file"),
    "a count of none": (
        "cat.png --count 0",
        2,
        "Invalid value for '--count': * (see imprompt generate --help)",
    ),
    "no reference": ("", 2, "Missing argument 'reference'. (see imprompt generate --help)"),
    "an unknown option": ("cat.png --sclae 1", 2, "No such option: --sclae * (see imprompt generate --help)"),
}


@pytest.mark.parametrize("case", BAD)
def test_generate_refuses(imprompt: Imprompt, toy: ToyModel, folder: Path, case: str) -> None:
    words, code, message = BAD[case]
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = imprompt("generate", *toy.options, *words.format(toy=toy).split())
    assert_one_line(result, code, message.format(toy=toy))
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def assert_one_line(result: Result, code: int, message: str) -> None:
    start, star, end = message.partition("*")
    assert (result.code, result.output) == (code, "")
    assert result.error.count("\n") == 1
    assert result.error.startswith(f"imprompt: {start}"), result.error
    assert result.error.endswith(f"{end}\n"), result.error
    assert star or result.error == f"imprompt: {message}\n"


def test_a_line_break_in_a_name_makes_no_second_line(imprompt: Imprompt) -> None:
    result = imprompt("generate", "line\nbreak.png")
    assert_one_line(result, 1, "line break.png is not a picture: *")


def test_a_missing_output_folder_is_found_before_any_work(imprompt: Imprompt) -> None:
    result = imprompt("generate", "none.png", "--base", "frob", "--output", "none/out.png")
    assert "there is no folder none" in result.error


def test_the_first_numbered_name_that_cannot_be_written_stops_all(imprompt: Imprompt, toy: ToyModel) -> None:
    Path("x-1.png").mkdir()
    words = "--count", "2", "--output", "x.png", "--overwrite"
    result = imprompt("generate", "cat.png", *words, *toy.options)
    assert_one_line(result, 1, "x-1.png cannot be written: it exists and is not a file")
    assert not Path("x-0.png").exists()


def test_a_read_only_folder(imprompt: Imprompt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert_one_line(
        imprompt("generate", "cat.png"), 1, "out.png cannot be written: the folder . is read-only for you"
    )


def odd_pictures() -> dict[str, Callable[[], None]]:
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "CMYK": lambda: red.convert("CMYK").save("x", "JPEG"),
        "16-bit": lambda: Image.fromarray(np.full((30, 40), 30_000, np.uint16)).save("x", "PNG"),
        "palette": lambda: red.convert("P").save("x", "PNG", transparency=0),
        "animated": lambda: red.save("x", "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        "EXIF-rotated": lambda: red.save("x", "JPEG", exif=turned),
    }


@pytest.mark.parametrize("kind", odd_pictures())
def test_odd_pictures_work(imprompt: Imprompt, toy: ToyModel, kind: str) -> None:
    odd_pictures()[kind]()
    assert imprompt("generate", "x", *toy.options) == Result(0, "wrote out.png\n", "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("none", 1, "none: no such file"),
        ("folder.png", 1, "folder.png is a folder, not an adapter file"),
        ("empty.png", 1, "empty.png is empty"),
        ("text.png", 1, "text.png is truncated or no adapter file: *"),
        ("cut.png", 1, "cut.png is truncated or damaged: *"),
        ("giant.png", 1, "giant.png has 30000 × 30000 pixels; the limit is *"),
        ("code.bin", 1, "code.bin holds more than tensors, perhaps code; *"),
        ("cut.safetensors", 1, "cut.safetensors is truncated or no adapter file: *"),
        ("", 2, "Missing argument 'file'. (see imprompt inspect --help)"),
    ],
)
def test_inspect_refuses(imprompt: Imprompt, words: str, code: int, message: str) -> None:
    assert_one_line(imprompt("inspect", *words.split()), code, message)
    assert not Path("trace").exists()


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_inspect_shows_a_faulty_adapter_and_fails(imprompt: Imprompt, option: list[str]) -> None:
    result = imprompt("inspect", "shape.safetensors", *option)
    message = "ip_adapter.3.to_v_ip.weight has shape 15"
    assert result.code == 1
    assert message in result.output
    assert result.error.startswith(f"imprompt: shape.safetensors: {message}")


def test_codes_for_the_terminal_are_not_passed_on(imprompt: Imprompt) -> None:
    tensors = {"image_proj.\x1b[2Jx": torch.zeros(1)}
    safetensors.torch.save_file(tensors, "esc.safetensors", {"encoder": "\x1b[2J[red]x[/red]"})
    save_picture(tiny.picture(), "esc.png", {"prompt": "\x1b[2J [bold]x"})
    for name in ("esc.safetensors", "esc.png"):
        for option in ([], ["--json"]):
            result = imprompt("inspect", name, *option)
            assert "\x1b" not in result.output + result.error


def test_convert_refuses(imprompt: Imprompt) -> None:
    result = imprompt("convert", "code.bin", "a.safetensors")
    assert_one_line(result, 1, "code.bin holds more than tensors, perhaps code; *")
    assert_one_line(
        imprompt("convert", "code.bin", "a.ckpt"), 1, "a.ckpt cannot be written: its name must end in *"
    )
    assert not Path("a.safetensors").exists()


def test_an_unknown_stage_or_setting(imprompt: Imprompt) -> None:
    assert_one_line(imprompt("mini", "train", "frob"), 1, "recipes/mini-frob.toml: no such recipe")
    assert_one_line(imprompt("mini", "train", "base", "--resume", "x"), 1, "--resume takes latest, not 'x'")


def test_an_unknown_suite(imprompt: Imprompt) -> None:
    suites = "mini, figures, study, coco, dreambench"
    assert_one_line(imprompt("evaluate", "frob"), 1, f"there is no suite 'frob'; the suites are: {suites}")


@pytest.mark.parametrize("words", ["frob", "mini frob"])
def test_an_unknown_command(imprompt: Imprompt, words: str) -> None:
    assert_one_line(imprompt(*words.split()), 2, "No such command 'frob'. (see *")


def test_no_command_shows_the_help_and_fails(imprompt: Imprompt) -> None:
    result = imprompt()
    assert result.code == 2
    assert "Usage: imprompt" in result.output + result.error


def test_the_installed_command_gives_the_exit_code_to_the_shell() -> None:
    command = Path(sys.executable).with_name("imprompt")
    result = subprocess.run(
        [command, "generate", "cat.png", "--scale", "abc"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
