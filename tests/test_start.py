"""How commands start: quickly, because they import only what they use, and without a word of libraries."""

import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import tiny
from conftest import ToyModel
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.cli.layer_plot import list_layer_names
from imprompt.cli.terminal import complete_adapter, pause_garbage_collection
from imprompt.errors import UnknownModel

SCRIPT = """
import json, sys
from imprompt.cli import main
codes = [main(words.split()) for words in sys.argv[1:]]
print(json.dumps([codes, sorted(sys.modules)]))
"""
HEAVY = ("torch", "diffusers", "transformers", "scipy", "peft", "accelerate")
NEVER = ("torchvision", "matplotlib", "pandas", "IPython", "datasets", "ray", "gradio", "tensorboard")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.picture(seed=1).save("cat.png")
    return tmp_path


def run(*commands: str) -> tuple[set[str], str]:
    """Run commands in a new process; return the modules that it imported, and its standard error."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *commands], capture_output=True, text=True, check=True
    )
    codes, modules = json.loads(result.stdout.splitlines()[-1])
    assert codes == [0] * len(commands)
    return set(modules), result.stderr


def test_commands_without_tensors_import_nothing_heavy() -> None:
    Path("job.toml").write_text('references = ["cat.png"]\n')
    commands = "--help", "--version", "variants", "inspect cat.png", "inspect job.toml", "layers style"
    modules, error = run(*commands)
    assert not modules & {*HEAVY, *NEVER}
    assert error == ""


def test_inspecting_an_adapter_needs_torch_alone(toy: ToyModel) -> None:
    modules, error = run(f"inspect {toy.adapter}")
    assert "torch" in modules
    assert not modules & {*HEAVY, *NEVER} - {"torch"}
    assert error == ""


def test_a_generation_imports_no_other_pipelines_and_says_nothing_of_its_own_accord() -> None:
    modules, error = run("generate cat.png --steps 1")
    assert not modules & {*NEVER, "diffusers.pipelines.auto_pipeline", "diffusers.pipelines.controlnet"}
    assert error == ""


def test_the_module_is_the_command_and_completes_it() -> None:
    asked = {"_IMPROMPT_COMPLETE": "complete_bash", "COMP_WORDS": "imprompt gen", "COMP_CWORD": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "imprompt"], capture_output=True, text=True, env=os.environ | asked
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "generate\n", "")


def test_names_of_adapters_and_suites_are_completed() -> None:
    assert complete_adapter("sd15-faceid-p") == [
        "sd15-faceid-plus",
        "sd15-faceid-plusv2",
        "sd15-faceid-portrait",
    ]
    assert complete_adapter("mini") == ["mini", "mini-plus"]


# The names of layers without diffusers


SD15: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8)}
SDXL: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
}
UNEVEN: dict[str, Any] = SDXL | {"layers_per_block": (1, 2, 3), "transformer_layers_per_block": (1, 1, 2)}
UNUSUAL: dict[str, Any] = SDXL | {"transformer_layers_per_block": (1, 2, 3), "dual_cross_attention": True}


@pytest.mark.parametrize("config", [SD15, SDXL, UNEVEN, UNUSUAL], ids=["sd15", "sdxl", "uneven", "unusual"])
def test_the_names_of_layers_are_those_of_the_unet(config: dict[str, Any], folder: Path) -> None:
    unet = UNet2DConditionModel(norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **config)
    unet.save_config(folder / "unet")
    expected = {number: name for number, (name, _) in find_cross_attention_layers(unet).items()}
    assert list_layer_names(str(folder)) == expected
    for base, known in (("sd15", SD15), ("sdxl", SDXL)):
        if known is config:
            assert list_layer_names(base) == expected


@pytest.mark.parametrize("content", ["", "[]", "[" * 9999])
def test_a_damaged_configuration_is_one_sentence(content: str, folder: Path) -> None:
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(content)
    with pytest.raises(UnknownModel, match=r"config.json"):
        list_layer_names(str(folder))


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_collection_pauses_and_is_what_it_was_afterwards(was_enabled: bool) -> None:
    (gc.enable if was_enabled else gc.disable)()
    try:
        with contextlib.suppress(ZeroDivisionError), pause_garbage_collection():
            assert not gc.isenabled()
            _ = 1 / 0
        assert gc.isenabled() == was_enabled
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
