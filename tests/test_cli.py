"""The command line where all is well: files, settings, help, and a quick start."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import tiny
from conftest import Result, ToyModel
from imprompt import cli
from imprompt.job import DEFAULT_STEPS, read_settings

Imprompt = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.picture(seed=1).save("cat.png")
    tiny.picture(seed=2).save("hat.png")
    return tmp_path


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cat.png", "hat.png"}


def opened(name: str) -> Image.Image:
    with Image.open(name) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


# generate


def test_generate_writes_one_picture_and_says_where(imprompt: Imprompt, toy: ToyModel, folder: Path) -> None:
    assert imprompt("generate", "cat.png", *toy.options) == Result(0, "wrote out.png\n", "")
    assert written(folder) == {"out.png"}
    assert opened("out.png").size == (16, 16)


def test_a_picture_carries_its_settings_and_no_folders(imprompt: Imprompt, toy: ToyModel) -> None:
    words = (
        "--prompt",
        "a hat",
        "--negative-prompt",
        "rain",
        "--scale",
        "0.5",
        "--guidance-scale",
        "3",
        "--seed",
        "7",
    )
    imprompt("generate", Path("cat.png").absolute(), *words, *toy.options)
    settings = read_settings("out.png")
    assert set(settings.pop("versions")) == {"imprompt", "torch", "diffusers"}
    assert settings == {
        "prompt": "a hat",
        "negative_prompt": "rain",
        "references": [{"images": ["cat.png"], "scale": 0.5}],
        "guidance_scale": 3.0,
        "steps": 2,
        "seed": 7,
        "width": 16,
        "height": 16,
        "base": "base",
        "adapter": "adapter.safetensors",
        "image_encoder": "encoder",
    }


def test_count_numbers_the_pictures_and_seeds(imprompt: Imprompt, toy: ToyModel, folder: Path) -> None:
    result = imprompt("generate", "cat.png", "--count", "3", "--seed", "5", "--output", "x.png", *toy.options)
    assert result.output == "wrote x-0.png\nwrote x-1.png\nwrote x-2.png\n"
    assert [read_settings(f"x-{i}.png")["seed"] for i in range(3)] == [5, 6, 7]
    imprompt("generate", "cat.png", "--seed", "6", *toy.options)
    assert opened("x-1.png").tobytes() == opened("out.png").tobytes()


def test_several_references_act_together(imprompt: Imprompt, toy: ToyModel) -> None:
    pictures = []
    for references in (["cat.png"], ["hat.png"], ["cat.png", "hat.png"]):
        imprompt("generate", *references, *toy.options)
        told = read_settings("out.png")["references"]
        assert told == [{"images": [name], "scale": 1.0} for name in references]
        pictures.append(opened("out.png").tobytes())
    assert len(set(pictures)) == 3


def test_size_is_in_pixels(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", "--size", "24", *toy.options)
    assert opened("out.png").size == (24, 24)


def test_an_old_picture_is_replaced_whole(imprompt: Imprompt, toy: ToyModel) -> None:
    Path("out.png").write_bytes(b"old")
    assert imprompt("generate", "cat.png", *toy.options).code == 0
    assert opened("out.png").size == (16, 16)


def test_ctrl_c_is_quiet_and_leaves_no_half_picture(
    imprompt: Imprompt, toy: ToyModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert imprompt("generate", "cat.png", *toy.options) == Result(130, "", "")
    assert written(folder) == set()


def test_a_real_ctrl_c_is_quiet(toy: ToyModel, folder: Path) -> None:
    script = (
        "import sys; from imprompt import cli; print('ready', flush=True); sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["generate", "cat.png", *toy.options, "--steps", "999"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error) == (130, "", "")
    assert written(folder) == set()


# inspect


def test_inspect_shows_what_an_adapter_is(imprompt: Imprompt, toy: ToyModel) -> None:
    code, output, error = imprompt("inspect", toy.adapter)
    assert (code, error) == (0, "")
    for words in (
        "base",
        "4 cross-attention layers",
        "an image encoder that we do not know, 14 wide",
        "float32",
    ):
        assert words in output


def test_inspect_as_json_is_json(imprompt: Imprompt, toy: ToyModel) -> None:
    facts = json.loads(imprompt("inspect", toy.adapter, "--json").output)
    assert (facts["variant"], facts["tokens"], facts["problems"]) == ("base", 4, [])
    assert facts["layers"] == {"1": [20, 16], "3": [20, 16], "5": [20, 16], "7": [20, 32]}


def test_inspect_shows_the_settings_of_a_picture(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", "--prompt", "a hat", *toy.options)
    assert re.search(r"prompt +│ a hat", imprompt("inspect", "out.png").output)
    assert json.loads(imprompt("inspect", "out.png", "--json").output) == read_settings("out.png")


def test_convert_writes_the_other_layout(imprompt: Imprompt, toy: ToyModel) -> None:
    assert imprompt("convert", toy.adapter, "a.bin") == Result(0, "wrote a.bin\n", "")
    assert "official layout (pickle)" in imprompt("inspect", "a.bin").output


# Help and start


@pytest.mark.parametrize(
    "command", ["", "generate", "inspect", "convert", "evaluate", "mini", "mini build-data", "mini train"]
)
def test_help_says_how_it_is_used(imprompt: Imprompt, command: str) -> None:
    code, output, error = imprompt(*command.split(), "--help")
    assert (code, error) == (0, "")
    assert f"Usage: imprompt {command}".strip() in output


def test_help_of_generate_teaches_by_example(imprompt: Imprompt) -> None:
    text = " ".join(imprompt("generate", "--help").output.split())
    assert "imprompt generate cat.png --prompt" in text
    assert f"{DEFAULT_STEPS} if left" in text


def test_options_of_generate_are_exactly_these(imprompt: Imprompt) -> None:
    lines = imprompt("generate", "--help").output.splitlines()
    options = {match[1] for line in lines if (match := re.match(r"│ (--[a-z-]+)", line))}
    stable = "prompt negative-prompt scale guidance-scale steps seed count size base adapter output"
    newer = (
        "image-encoder view mode mask from until crop negative combine init-image strength inpaint control "
        "control-model control-scale job like save-job"
    )
    assert options - {"--help"} == {f"--{name}" for name in f"{stable} {newer}".split()}


def test_the_start_is_quick_because_nothing_heavy_is_imported() -> None:
    check = (
        "import sys; from imprompt import cli; cli.main(['--help']); print({*sys.modules} & {*sys.argv[1:]})"
    )
    heavy = ["torch", "numpy", "PIL", "diffusers", "transformers"]
    result = subprocess.run([sys.executable, "-c", check, *heavy], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"


def test_main_takes_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["imprompt", "frob"])
    assert cli.main() == 2
