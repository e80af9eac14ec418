"""References as they are given: standard input, folders, paths, long portraits, and pictures from Python."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from conftest import Result, ToyModel
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import ConfigError
from imprompt.generation.generate import generate
from imprompt.generation.job import Job, read_settings, reference
from imprompt.generation.settings import Settings, check_settings
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.reference import Reference
from imprompt.runtime.picture_files import PARAMETERS_KEY, save_picture

Imprompt = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with another one beside it."""
    place = tmp_path / "here"
    place.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(place)
    tiny.picture(seed=1).save("cat.png")
    tiny.picture(seed=2).save(tmp_path / "elsewhere" / "dog.png")
    return place


def pixels(name: str) -> bytes:
    with Image.open(name) as picture:
        return picture.convert("RGB").tobytes()


# Standard input


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes, *, terminal: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", stream)
    reference._read_standard_input.cache_clear()


def test_a_picture_from_standard_input_acts_like_its_file(
    imprompt: Imprompt, toy: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    imprompt("generate", "cat.png", *toy.options)
    pipe_in(monkeypatch, Path("cat.png").read_bytes())
    assert imprompt("generate", "-", "--output", "x.png", *toy.options) == Result(0, "wrote x.png\n", "")
    assert pixels("x.png") == pixels("out.png")
    assert read_settings("x.png")["references"] == [{"images": ["-"], "scale": 1.0}]


@pytest.mark.parametrize(
    ("data", "terminal", "message"),
    [
        (b"", True, "'-' stands for standard input, and nothing is piped into it; give a file, or pipe one"),
        (b"", False, "standard input is empty"),
        (b"text", False, "standard input is not a picture: "),
    ],
)
def test_standard_input_without_a_picture_is_said(
    imprompt: Imprompt, monkeypatch: pytest.MonkeyPatch, data: bytes, terminal: bool, message: str
) -> None:
    pipe_in(monkeypatch, data, terminal=terminal)
    code, _, error = imprompt("generate", "-")
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"imprompt: {message}")


def test_more_bytes_than_a_picture_has_are_refused(
    imprompt: Imprompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_PICTURE_BYTES", 10)
    pipe_in(monkeypatch, b"x" * 11)
    assert "holds more than 10 bytes" in imprompt("generate", "-").error


# Folders


def test_a_folder_stands_for_each_of_its_pictures(imprompt: Imprompt, toy: ToyModel) -> None:
    Path("many").mkdir()
    shutil.copy("cat.png", "many/b.png")
    tiny.picture(seed=2).save("many/a.jpg")
    Path("many/notes.txt").write_text("no picture")
    Path("many/.hidden").touch()
    code, output, error = imprompt("generate", "many", "--scale", "0.5", *toy.options)
    assert (code, output) == (0, "wrote out-0.png from many/a.jpg\nwrote out-1.png from many/b.png\n")
    assert error == "imprompt: many/notes.txt is no picture and is left out\n"
    imprompt("generate", "cat.png", "--scale", "0.5", *toy.options)
    assert pixels("out.png") == pixels("out-1.png")


def test_options_about_one_generation_do_not_go_with_a_folder(imprompt: Imprompt) -> None:
    Path("many").mkdir()
    for words in (["--view"], ["--save-job", "x.toml"]):
        code, _, error = imprompt("generate", "many", *words)
        assert (code, "is about one picture, and many is a folder" in error) == (2, True)


# Paths


@pytest.mark.parametrize("given", ["cat.png", "../elsewhere/dog.png", "{folder}/dog.png"])
def test_like_finds_a_reference_however_its_path_was_given(
    imprompt: Imprompt, toy: ToyModel, folder: Path, given: str
) -> None:
    given = given.format(folder=folder.parent / "elsewhere")
    imprompt("generate", given, *toy.options)
    assert str(folder.parent) not in json.dumps(read_settings("out.png"))
    result = imprompt("generate", "--like", "out.png", *toy.options[:-2])
    assert result == Result(0, "wrote out-1.png\n", "")
    assert pixels("out-1.png") == pixels("out.png")


def test_a_relative_path_stays_relative_to_the_picture(
    imprompt: Imprompt, toy: ToyModel, folder: Path
) -> None:
    Path("results").mkdir()
    imprompt("generate", "../elsewhere/dog.png", "--output", "results/x.png", *toy.options)
    (stored,) = read_settings("results/x.png")["references"]
    assert stored["images"] == ["../../elsewhere/dog.png"]
    assert Job.from_image("results/x.png").references[0].images == ("results/../../elsewhere/dog.png",)


def test_a_reference_that_changed_or_vanished_is_said(imprompt: Imprompt, toy: ToyModel) -> None:
    imprompt("generate", "cat.png", *toy.options)
    tiny.picture(seed=9).save("cat.png")
    again = "pass it again: imprompt generate PICTURE --like out.png"
    code, _, error = imprompt("generate", "--like", "out.png", *toy.options[:-2])
    assert (code, error) == (
        1,
        f"imprompt: out.png was made from another cat.png than the one here; {again}\n",
    )
    assert imprompt("generate", "cat.png", "--like", "out.png", *toy.options[:-2]).code == 0
    Path("cat.png").unlink()
    code, _, error = imprompt("generate", "--like", "out.png", *toy.options[:-2])
    assert (code, "which is neither in its folder" in error, error.endswith(f"{again}\n")) == (1, True, True)


def test_a_hash_in_a_foreign_picture_names_no_file_of_ours(folder: Path) -> None:
    for digest in ("../../etc/passwd", "x" * 32, 7):
        save_picture(tiny.picture(), "x.png", {"references": ["a.png"], "hashes": {"a.png": digest}})
        assert Job.from_image("x.png").references[0].images == ("a.png",)


# Long portraits


@pytest.mark.parametrize(
    ("size", "words", "is_mentioned"),
    [
        ((20, 60), [], True),
        ((20, 30), [], False),
        ((60, 20), [], False),
        ((20, 60), ["--crop", "top"], False),
        ((20, 60), ["--crop", "pad"], False),
    ],
)
def test_a_long_portrait_is_mentioned_where_the_center_crop_cuts_it(
    imprompt: Imprompt, toy: ToyModel, size: tuple[int, int], words: list[str], is_mentioned: bool
) -> None:
    tiny.picture(width=size[0], height=size[1]).save("x.png")
    code, output, error = imprompt("generate", "x.png", *words, *toy.options)
    assert (code, output) == (0, "wrote out.png\n")
    assert error.count("\n") == is_mentioned
    assert error.startswith("imprompt: x.png is a long portrait") == is_mentioned


# From Python


@pytest.fixture
def seeing(adapter: ImagePromptAdapter) -> ImagePromptAdapter:
    adapter.image_encoder = tiny.vision_model()  # pyright: ignore[reportAttributeAccessIssue]
    return adapter


@pytest.mark.parametrize(
    "one",
    ["cat.png", Path("cat.png"), tiny.picture(seed=1), np.asarray(tiny.picture(seed=1))],
    ids=["str", "Path", "picture", "array"],
)
def test_one_reference_needs_no_list(pipe: Any, seeing: ImagePromptAdapter, one: Any) -> None:
    (picture,) = generate(pipe, seeing, one, steps=1, seed=3, size=(16, 24))
    (listed,) = generate(pipe, seeing, [Reference("cat.png")], steps=1, seeds=[3], size=(16, 24))
    assert picture.size == (16, 24)
    assert picture.tobytes() == listed.tobytes()


def test_a_picture_from_python_carries_its_settings(
    pipe: Any, seeing: ImagePromptAdapter, folder: Path
) -> None:
    references = [
        Reference(folder / "cat.png", scale=0.5, layers={"up": 1.0}, mask=Image.new("L", (8, 8), 255)),
        [Reference(tiny.picture(), negative=str(folder / "cat.png"), step_weights=(1, 0.5))],
    ]
    (picture,) = generate(pipe, seeing, references, prompt="a, hat", steps=2, seed=4)
    save_picture(picture, "x.png")
    settings = read_settings("x.png")
    assert (settings["prompt"], settings["seed"], settings["steps"]) == ("a, hat", 4, 2)
    assert settings["references"] == [
        {"images": ["cat.png"], "scale": 0.5, "layers": {"up": 1.0}, "mask": "(in memory)"},
        {"images": ["(in memory)"], "scale": 1.0, "negative": ["cat.png"], "step_weights": [1.0, 0.5]},
    ]
    assert str(folder) not in str(picture.info)
    assert picture.info[PARAMETERS_KEY].startswith("a, hat\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ["a", "b"]}, r"prompt must be one text, not \['a', 'b'\]"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"guidance_scale": "7"}, "guidance_scale must be a number, not '7'"),
        ({"size": "64x64"}, r"size must be one whole number or \(width, height\), not '64x64'"),
        ({"size": (64, 64, 3)}, r"not \(64, 64, 3\)"),
        ({"seeds": 3}, "seeds must be a list of whole numbers, not 3"),
        ({"seed": "x"}, r"seeds must be a list of whole numbers, not \['x'\]"),
        ({"seed": 1, "seeds": [1]}, "exclude each other"),
        ({"adapter": "mini"}, "must be an ImagePromptAdapter, not 'mini'"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_sentence(
    pipe: Any, seeing: ImagePromptAdapter, settings: dict[str, Any], message: str, unchecked: None
) -> None:
    call: Any = generate
    with pytest.raises(ConfigError, match=message):
        call(pipe, settings.pop("adapter", seeing), "cat.png", **settings)


def test_whole_numbers_of_numpy_are_whole_numbers(pipe: Any, unchecked: None) -> None:
    number: Any = np.int64(2)
    check_settings(pipe, Settings(steps=number, size=(number * 8, number * 8)), [number])


def test_embeddings_are_printed_on_one_short_line() -> None:
    made = ImageEmbeddings(
        {"image_embedding": tiny.torch.ones(1, 14)},
        {"image_embedding": tiny.torch.zeros(14)},
        {"encoder": "toy", "encoder_signature": "[0.1, 0.2]" * 20},
    )
    assert repr(made) == "ImageEmbeddings(image_embedding 1 × 14, encoder 'toy')"
