"""`imprompt inspect` of pictures that are none of ours: what they are, and who made them if they say so."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

import tiny
from conftest import Result
from imprompt.runtime.picture_files import SETTINGS_KEY, save_picture

Imprompt = Callable[..., Result]
PARAMETERS = "a cat, <lora:x:1>\nNegative prompt: rain\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 5, "model": ["4", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "rain"}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts(imprompt: Imprompt, name: str) -> dict[str, Any]:
    """What `--json` says; the table must do too."""
    assert imprompt("inspect", name).code == 0
    code, output, error = imprompt("inspect", name, "--json")
    assert (code, error) == (0, "")
    return json.loads(output)


def save_with_texts(name: str, **texts: str) -> None:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    tiny.picture().save(name, pnginfo=info)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("name", ["x.png", "photo", "x.safetensors", "x.toml.jpg"])
def test_an_ordinary_picture_is_told_whatever_its_name(imprompt: Imprompt, name: str, kind: str) -> None:
    Image.new("RGB", (24, 16), (1, 2, 3)).save(name, kind)
    said = facts(imprompt, name)
    assert said["kind"] == "a picture without settings of imprompt"
    assert (said["format"], said["width"], said["height"]) == (kind, 24, 16)
    assert said["mode"] == ("P" if kind == "GIF" else "RGB")
    assert len(said) == 5


def test_transparency_and_animation_are_told(imprompt: Imprompt) -> None:
    Image.new("RGBA", (8, 8)).save("a.png")
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 99, 200)]
    frames[0].save("b.webp", save_all=True, append_images=frames[1:])
    assert facts(imprompt, "a.png")["mode"] == "RGBA (transparent)"
    assert facts(imprompt, "b.webp")["frames"] == "3, of which the first is used"


def test_what_the_web_ui_wrote_is_shown_line_by_line(imprompt: Imprompt) -> None:
    save_with_texts("a.png", parameters=PARAMETERS)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    tiny.picture().save("a.jpg", exif=exif)
    for name in ("a.png", "a.jpg"):
        assert facts(imprompt, name)["parameters_of_A1111"] == PARAMETERS.splitlines()
    assert "Negative prompt: rain" in imprompt("inspect", "a.png").output


def test_comfyuis_graph_is_told_by_its_nodes(imprompt: Imprompt) -> None:
    save_with_texts("a.png", prompt=json.dumps(GRAPH), workflow="{}")
    said = facts(imprompt, "a.png")["graph_of_ComfyUI"]
    assert said == ["2 × CLIPTextEncode", "1 × CheckpointLoaderSimple", "1 × KSampler"]


@pytest.mark.parametrize("text", ["a plain prompt", "[" * 5000, "[1]", "{}", '{"1": 2}', '{"1": {"a": 1}}'])
def test_a_text_named_prompt_that_is_no_graph_is_none(imprompt: Imprompt, text: str) -> None:
    save_with_texts("a.png", prompt=text)
    assert "graph_of_ComfyUI" not in facts(imprompt, "a.png")


def test_long_texts_are_cut_and_codes_for_the_terminal_not_passed_on(imprompt: Imprompt) -> None:
    save_with_texts("a.png", parameters="\x1b[2J" + "x" * 9000 + "\n" + "line\n" * 500)
    said = facts(imprompt, "a.png")["parameters_of_A1111"]
    assert (len(said), said[-1]) == (41, "... and 461 more lines")
    assert max(map(len, said)) < 300
    assert "\x1b" not in imprompt("inspect", "a.png").output


def test_settings_of_ours_are_still_shown_and_damaged_ones_named(imprompt: Imprompt) -> None:
    save_picture(tiny.picture(), "a.png", {"prompt": "a hat"})
    assert facts(imprompt, "a.png") == {"prompt": "a hat"}
    save_with_texts("b.png", **{SETTINGS_KEY: "{not JSON"})
    code, _, error = imprompt("inspect", "b.png")
    assert (code, error) == (1, "imprompt: b.png holds no settings of imprompt\n")


def test_an_adapter_file_whose_length_spells_a_bitmap_is_read_as_tensors(imprompt: Imprompt) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2)}, "a.safetensors")
    data = Path("a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    wanted = int.from_bytes(b"BM", "little")
    padded = struct.pack("<Q", wanted) + data[8 : 8 + length].ljust(wanted) + data[8 + length :]
    assert padded.startswith(b"BM")
    Path("a.safetensors").write_bytes(padded)
    assert "it is a LoRA" in imprompt("inspect", "a.safetensors").error
