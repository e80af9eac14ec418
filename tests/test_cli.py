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
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from safetensors.torch import save_file

import tiny
from conftest import Result, ToyModel
from imprompt import cli
from imprompt.checkpoint.published import PUBLISHED
from imprompt.generation.job import DEFAULT_STEPS, read_settings
from imprompt.inputs.embeddings import ImageEmbeddings

Imprompt = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.picture(seed=1).save("cat.png")
    tiny.picture(seed=2).save("hat.png")
    return tmp_path


def list_new_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cat.png", "hat.png"}


def open_png(name: str) -> Image.Image:
    with Image.open(name) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


# generate


def test_generate_writes_one_picture_and_says_where(imprompt: Imprompt, toy: ToyModel, folder: Path) -> None:
    assert imprompt("generate", "cat.png", *toy.options) == Result(0, "wrote out.png\n", "")
    assert list_new_files(folder) == {"out.png"}
    assert open_png("out.png").size == (16, 16)


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
        "--guidance-interval",
        "0,0.5",
        "--seed",
        "7",
    )
    imprompt("generate", Path("cat.png").absolute(), *words, *toy.options)
    settings = read_settings("out.png")
    assert set(settings.pop("versions")) == {"imprompt", "torch", "diffusers"}
    assert set(settings.pop("hashes")) == {"cat.png"}
    assert settings == {
        "prompt": "a hat",
        "negative_prompt": "rain",
        "references": [{"images": ["cat.png"], "scale": 0.5}],
        "guidance_scale": 3.0,
        "guidance_interval": [0.0, 0.5],
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
    assert open_png("x-1.png").tobytes() == open_png("out.png").tobytes()


def test_several_references_act_together(imprompt: Imprompt, toy: ToyModel) -> None:
    pictures = []
    for references in (["cat.png"], ["hat.png"], ["cat.png", "hat.png"]):
        imprompt("generate", *references, "--overwrite", *toy.options)
        told = read_settings("out.png")["references"]
        assert told == [{"images": [name], "scale": 1.0} for name in references]
        pictures.append(open_png("out.png").tobytes())
    assert len(set(pictures)) == 3


def test_options_of_each_reference_are_given_in_order(imprompt: Imprompt, toy: ToyModel) -> None:
    each = (
        "--scale 0.5 --scale 1 --mask m.png --mask - --crop top --crop 0.5,0 --from 0.2 --until 0.5 --until 1"
    )
    Image.new("L", (8, 8), 255).save("m.png")
    imprompt("generate", "cat.png", "hat.png", *each.split(), "--negative", "hat.png", *toy.options)
    assert read_settings("out.png")["references"] == [
        {
            "images": ["cat.png"],
            "scale": 0.5,
            "start": 0.2,
            "end": 0.5,
            "mask": "m.png",
            "crop": "top",
            "negative": ["hat.png"],
        },
        {
            "images": ["hat.png"],
            "scale": 1.0,
            "start": 0.2,
            "crop": [0.5, 0.0],
            "negative": ["hat.png"],
        },
    ]


def test_combine_makes_one_reference_of_all(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", "hat.png", "--combine", "average", *toy.options)
    one = {"images": ["cat.png", "hat.png"], "scale": 1.0, "combine": "average"}
    assert read_settings("out.png")["references"] == [one]


def test_a_picture_to_start_from_and_a_mask(imprompt: Imprompt, toy: ToyModel) -> None:
    Image.new("L", (16, 16)).save("black.png")
    tiny.picture(seed=3, width=16, height=16).save("start.png")
    words = "--init-image", "start.png", "--inpaint", "black.png", "--strength", "0.5"
    assert imprompt("generate", "cat.png", *words, *toy.options).code == 0
    assert open_png("out.png").tobytes() == open_png("start.png").tobytes()


def test_a_control_changes_the_picture(imprompt: Imprompt, toy: ToyModel, folder: Path) -> None:
    net = ControlNetModel.from_unet(tiny.sd_unet(), conditioning_embedding_out_channels=(4, 8))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    net.save_pretrained(folder / "net")
    made = set()
    for scale in ("0", "1"):
        words = "--control", "hat.png", "--control-model", "net", "--control-scale", scale, "--overwrite"
        assert imprompt("generate", "cat.png", *words, *toy.options).code == 0
        made.add(open_png("out.png").tobytes())
    assert len(made) == 2


def test_view_writes_what_the_encoder_saw(imprompt: Imprompt, toy: ToyModel) -> None:
    result = imprompt("generate", "cat.png", "hat.png", "--view", *toy.options)
    assert result == Result(0, "wrote out.png\nwrote out-seen.png\n", "")
    assert open_png("out-seen.png").size == (28 + 8 + 28, 28)


# Jobs


def test_a_saved_job_and_a_picture_make_the_same_picture_again(imprompt: Imprompt, toy: ToyModel) -> None:
    words = "--prompt", "x", "--scale", "0.5", "--seed", "4", "--save-job", "job.toml"
    first = imprompt("generate", "cat.png", *words, *toy.options)
    assert first.output == "wrote out.png\nwrote job.toml\n"
    imprompt("generate", "--job", "job.toml", "--output", "again.png")
    models = toy.options[:-2]  # elsewhere on the disk, so the picture does not tell where
    imprompt("generate", "--like", "out.png", "--output", "like.png", *models)
    assert open_png("out.png").tobytes() == open_png("again.png").tobytes() == open_png("like.png").tobytes()


def test_like_takes_everything_but_what_is_given(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", "--prompt", "x", "--scale", "0.5", "--mode", "ease in", *toy.options)
    words = "--seed", "9", "--prompt", "", "--output", "like.png"
    imprompt("generate", "hat.png", "--like", "out.png", *words, *toy.options)
    told = read_settings("like.png")
    assert (told["prompt"], told["seed"]) == ("", 9)
    assert told["references"] == [{"images": ["hat.png"], "scale": 0.5, "layers": "ease in"}]


def test_a_job_takes_seed_count_and_output(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", "--save-job", "job.toml", *toy.options)
    result = imprompt("generate", "--job", "job.toml", "--seed", "5", "--count", "2", "--output", "j.png")
    assert result.output == "wrote j-0.png\nwrote j-1.png\n"
    assert [read_settings(f"j-{i}.png")["seed"] for i in range(2)] == [5, 6]


def test_layers_are_drawn(imprompt: Imprompt) -> None:
    for base in ("mini", "sd15", "sdxl"):
        assert imprompt("layers", "style", "--base", base, "--overwrite") == Result(
            0, "wrote layers.png\n", ""
        )
        assert open_png("layers.png").width > 100


def test_ctrl_c_is_quiet_and_leaves_no_half_picture(
    imprompt: Imprompt, toy: ToyModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert imprompt("generate", "cat.png", *toy.options) == Result(130, "", "")
    assert list_new_files(folder) == set()


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
    assert list_new_files(folder) == set()


# inspect


def test_inspect_shows_what_an_adapter_is(imprompt: Imprompt, toy: ToyModel) -> None:
    code, output, error = imprompt("inspect", toy.adapter)
    assert (code, error) == (0, "")
    for words in (
        "base",
        "4 cross-attention layers",
        "an unknown image encoder, 14 wide",
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


def test_inspect_explains_jobs_embeddings_and_folders(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", "--save-job", "job.toml", *toy.options)
    assert json.loads(imprompt("inspect", "job.toml", "--json").output)["steps"] == 2
    assert "StableDiffusionPipeline" in imprompt("inspect", toy.base).output
    assert "CLIPVisionModelWithProjection" in imprompt("inspect", toy.image_encoder).output
    made = ImageEmbeddings(
        {"image_embedding": torch.ones(1, 14)}, {"image_embedding": torch.zeros(14)}, {"encoder": "toy"}
    )
    made.save("cat.safetensors")
    facts = json.loads(imprompt("inspect", "cat.safetensors", "--json").output)
    assert (facts["kind"], facts["inputs"]) == ("image embeddings", {"image_embedding": "1 × 14"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.weight", "the U-Net of a base model"),
        ("vision_model.embeddings.class_embedding", "an image encoder"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "the U-Net of a base model"),
    ],
)
def test_inspect_names_what_is_no_adapter(imprompt: Imprompt, name: str, kind: str) -> None:
    save_file({name: torch.zeros(2, 2)}, "x.safetensors")
    code, _, error = imprompt("inspect", "x.safetensors")
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"imprompt: x.safetensors: it is {kind}, not an image-prompt adapter")


def test_convert_writes_the_other_layout(imprompt: Imprompt, toy: ToyModel) -> None:
    assert imprompt("convert", toy.adapter, "a.bin") == Result(0, "wrote a.bin\n", "")
    assert "official layout (pickle)" in imprompt("inspect", "a.bin").output


# Help and start


def test_variants_lists_every_short_name(imprompt: Imprompt) -> None:
    code, output, error = imprompt("variants")
    assert (code, error) == (0, "")
    assert all(name in output for name in PUBLISHED)


def test_variants_as_json_name_the_files(imprompt: Imprompt) -> None:
    rows = json.loads(imprompt("variants", "--json").output)
    assert [row["name"] for row in rows] == list(PUBLISHED)
    assert rows[0]["file"] == "models/ip-adapter_sd15.safetensors"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "generate",
        "inspect",
        "convert",
        "evaluate",
        "variants",
        "layers",
        "mini",
        "mini build-data",
        "mini train",
        "mini export",
        "train",
    ],
)
def test_help_says_how_it_is_used(imprompt: Imprompt, command: str) -> None:
    code, output, error = imprompt(*command.split(), "--help")
    assert (code, error) == (0, "")
    assert f"Usage: imprompt {command}".strip() in output


def test_an_adapter_for_a_suite_that_measures_none_is_refused(imprompt: Imprompt) -> None:
    code, _, error = imprompt("evaluate", "figures", "--adapter", "x.safetensors")
    assert code == 1
    assert "--adapter has no effect on the suite 'figures'; it goes with mini" in error


def test_help_of_generate_teaches_by_example(imprompt: Imprompt) -> None:
    text = " ".join(imprompt("generate", "--help").output.split())
    assert "imprompt generate cat.png --prompt" in text
    assert f"Default: {DEFAULT_STEPS}." in text


def test_options_of_generate_are_exactly_these(imprompt: Imprompt) -> None:
    lines = imprompt("generate", "--help").output.splitlines()
    options = {match[1] for line in lines if (match := re.match(r"│ (--[a-z-]+)", line))}
    stable = (
        "prompt negative-prompt scale guidance-scale steps seed count size width height base adapter output"
    )
    newer = (
        "guidance-interval true-guidance-scale "
        "image-encoder view mode mask from until crop negative combine init-image strength inpaint control "
        "control-model control-scale job overwrite like save-job lora vae embedding variant revision "
        "scheduler speed feature-cache clip-skip prompt-weighting device dtype offload tiling "
        "cuda-graphs backend"
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
