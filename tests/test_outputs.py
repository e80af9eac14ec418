"""What is written: no file is lost, names can be predicted, every format carries settings and parameters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from conftest import Result, ToyModel
from imprompt.errors import OutputError
from imprompt.generation.job import read_settings
from imprompt.runtime.output import find_free_paths
from imprompt.runtime.picture_files import FORMATS, PARAMETERS_KEY, read_parameters, save_picture

Imprompt = Callable[..., Result]
TEXTS = "a cat, <lora:x:1>\nNegative prompt: rain & λ 猫\nSteps: 20, Sampler: Euler a"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.picture(seed=1).save("cat.png")
    return tmp_path


# Names


@given(
    taken=st.sets(st.sampled_from(["out.png", "out-x.png", "o.png", *(f"out-{i}.png" for i in range(12))])),
    count=st.integers(1, 4),
)
def test_free_names_are_free_and_numbered_without_gaps(
    tmp_path_factory: pytest.TempPathFactory, taken: set[str], count: int
) -> None:
    place = tmp_path_factory.mktemp("names")
    for name in taken:
        (place / name).touch()
    free = [path.name for path in find_free_paths(place / "out.png", count)]
    assert len(free) == count
    assert not {*free} & taken
    if free != ["out.png"]:
        first = int(free[0].removeprefix("out-").removesuffix(".png"))
        assert free == [f"out-{first + i}.png" for i in range(count)]
        assert not [name for name in taken if name in {f"out-{first + i}.png" for i in range(99)}]


def test_an_existing_picture_is_kept_and_the_next_free_name_is_said(
    imprompt: Imprompt, toy: ToyModel
) -> None:
    Path("out.png").write_bytes(b"mine")
    assert imprompt("generate", "cat.png", *toy.options) == Result(0, "wrote out-1.png\n", "")
    several = imprompt("generate", "cat.png", "--count", "2", *toy.options)
    assert several.output == "wrote out-2.png\nwrote out-3.png\n"
    assert Path("out.png").read_bytes() == b"mine"


def test_overwrite_replaces_the_whole_file(imprompt: Imprompt, toy: ToyModel) -> None:
    Path("out.png").write_bytes(b"old")
    assert imprompt("generate", "cat.png", "--overwrite", *toy.options) == Result(0, "wrote out.png\n", "")
    with Image.open("out.png") as picture:
        assert picture.size == (16, 16)


def test_views_and_jobs_are_kept_too(imprompt: Imprompt, toy: ToyModel) -> None:
    for name in ("out-seen.png", "a.toml"):
        Path(name).write_bytes(b"mine")
    result = imprompt("generate", "cat.png", "--view", "--save-job", "a.toml", *toy.options)
    assert result.output == "wrote out.png\nwrote out-seen-1.png\nwrote a-1.toml\n"


def test_a_file_that_appears_meanwhile_is_kept(
    imprompt: Imprompt, toy: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imprompt.cli import jobs

    def load_late(job: Any) -> Any:
        Path("out.png").write_bytes(b"of another run")
        return load_models(job)

    load_models = jobs._load_models
    monkeypatch.setattr(jobs, "_load_models", load_late)
    assert imprompt("generate", "cat.png", *toy.options).output == "wrote out-1.png\n"
    assert Path("out.png").read_bytes() == b"of another run"


def test_convert_replaces_nothing_unless_it_is_told_to(imprompt: Imprompt, toy: ToyModel) -> None:
    Path("a.bin").write_bytes(b"mine")
    code, _, error = imprompt("convert", toy.adapter, "a.bin")
    assert (code, error) == (
        1,
        "imprompt: a.bin exists; choose another name, or give --overwrite to replace it\n",
    )
    assert imprompt("convert", toy.adapter, "a.bin", "--overwrite").code == 0


def test_a_folder_of_spaces_is_quoted_in_the_command_that_makes_it() -> None:
    with pytest.raises(OutputError, match=r"create it first: mkdir -p 'my pictures/of cats'"):
        save_picture(tiny.picture(), "my pictures/of cats/a.png", {})


# Formats


@pytest.mark.parametrize("suffix", [*FORMATS, ".PNG", ".Jpg"])
def test_settings_and_parameters_come_back_from_every_format(suffix: str) -> None:
    settings = {"prompt": "<λ> & \n ]]> 猫", "seed": 2**63 - 1, "references": ["cat.png"]}
    picture = tiny.picture()
    picture.info[PARAMETERS_KEY] = TEXTS
    save_picture(picture, f"x{suffix}", settings)
    assert read_settings(f"x{suffix}") == settings
    with Image.open(f"x{suffix}") as saved:
        assert saved.format == FORMATS[suffix.lower()]
        assert read_parameters(saved) == TEXTS


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_any_prompt_comes_back_from_a_jpeg(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jpg"
    save_picture(tiny.picture(width=8, height=8), path, {"prompt": text})
    assert read_settings(path) == {"prompt": text}


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_formats_without_loss_keep_every_pixel(suffix: str) -> None:
    save_picture(tiny.picture(), f"x{suffix}")
    with Image.open(f"x{suffix}") as saved:
        assert saved.convert("RGB").tobytes() == tiny.picture().tobytes()


def test_settings_that_do_not_fit_into_a_jpeg_are_an_error_before_anything_is_written(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"x.jpg cannot be written: .* use .png or .webp"):
        save_picture(tiny.picture(), "x.jpg", {"prompt": "x" * 70_000})
    assert {path.name for path in folder.iterdir()} == {"cat.png"}


def test_a_picture_that_was_opened_keeps_its_settings_when_it_is_saved() -> None:
    save_picture(tiny.picture(), "x.png", {"prompt": "a hat"})
    with Image.open("x.png") as picture:
        save_picture(picture, "y.png")
    assert read_settings("y.png") == {"prompt": "a hat"}


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_like_repeats_a_picture_of_any_format(imprompt: Imprompt, toy: ToyModel, suffix: str) -> None:
    words = "--prompt", "a hat", "--seed", "3", "--size", "16x24", "--output", f"x{suffix}"
    imprompt("generate", "cat.png", *words, *toy.options)
    imprompt("generate", "--like", f"x{suffix}", "--output", f"y{suffix}", *toy.options[:-2])
    assert read_settings(f"y{suffix}") == read_settings(f"x{suffix}")
    assert Path(f"y{suffix}").read_bytes() == Path(f"x{suffix}").read_bytes()
    assert json.loads(imprompt("inspect", f"x{suffix}", "--json").output)["height"] == 24


def test_a_picture_carries_the_parameters_that_other_programs_read(imprompt: Imprompt, toy: ToyModel) -> None:
    words = "--prompt", "a hat", "--negative-prompt", "rain", "--guidance-scale", "3", "--seed", "7"
    imprompt("generate", "cat.png", *words, *toy.options)
    with Image.open("out.png") as picture:
        assert read_parameters(picture) == (
            "a hat\nNegative prompt: rain\nSteps: 2, Sampler: DDIM, "
            "CFG scale: 3, Seed: 7, Size: 16x16, Model: base, Version: imprompt 0.1.0"
        )
