"""What would hang, fill the memory or end in a traceback is refused at once, in one sentence."""

import importlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny
from conftest import Result, ToyModel
from imprompt.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    InvalidReference,
    OutputError,
    UnknownModel,
)
from imprompt.generation.job import Job, parse_job, read_settings
from imprompt.generation.models import load_controlnet, load_pipeline
from imprompt.generation.settings import Settings, build_call_arguments, check_settings
from imprompt.inputs.choices import MAX_IMAGES
from imprompt.inputs.embeddings import ImageEmbeddings, load_embeddings
from imprompt.inputs.encoder import load_image_encoder
from imprompt.inputs.image import load_image
from imprompt.reference import Reference
from imprompt.runtime.files import MAX_NAME_BYTES, MAX_PATH_BYTES, find_file_fault, find_name_fault
from imprompt.runtime.output import check_output
from imprompt.runtime.settings import read_toml, replace_setting
from test_bad_input import assert_one_line

Imprompt = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("in_time")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.picture().save("cat.png")
    return tmp_path


# No regular file

KINDS = {"pipe": "a named pipe", "zero": "a device", "socket": "a socket", "link": "a device"}


def put(kind: str, name: str) -> None:
    """Something at `name` that is no file."""
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(name)
    else:
        Path(name).symlink_to("/dev/zero" if kind == "zero" else "/dev/random")


READERS = {
    "generate x.png",
    "generate cat.png x.png",
    "generate x.safetensors",
    "generate cat.png --mask x.png",
    "generate cat.png --negative x.png",
    "generate cat.png --init-image x.png",
    "generate cat.png --init-image cat.png --inpaint x.png",
    "generate cat.png --control x.png",
    "generate cat.png --adapter x.bin",
    "generate --job x.toml",
    "generate --like x.png",
    "inspect x.png",
    "inspect x.bin",
    "inspect x.toml",
    "inspect x.safetensors",
    "convert x.bin y.safetensors",
    "train x.toml",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", sorted(READERS))
def test_what_is_no_file_is_not_read(imprompt: Imprompt, toy: ToyModel, command: str, kind: str) -> None:
    name = next(word for word in command.split() if word.startswith("x."))
    put(kind, name)
    options = toy.options if command.startswith("generate") and "--job" not in command else []
    words = [word for word in command.split() if word != "generate"]
    result = imprompt(*(["generate", *options] if "generate" in command else []), *words)
    assert_one_line(result, 1, f"{name} cannot be read: it is {KINDS[kind]}, not a file; copy its content *")


@pytest.mark.parametrize("index", ["model_index.json", "config.json"])
@pytest.mark.parametrize("kind", [*KINDS, "deep"])
def test_a_folder_whose_index_is_no_file_is_no_model(imprompt: Imprompt, kind: str, index: str) -> None:
    Path("x").mkdir()
    if kind == "deep":
        Path("x", index).write_text("[" * 100_000)
    else:
        put(kind, f"x/{index}")
    assert_one_line(imprompt("inspect", "x"), 1, "x is a folder, not an adapter file")


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (load_image, ImageError),
        (Job.from_toml, ConfigError),
        (read_settings, ImageError),
        (load_embeddings, CheckpointError),
        (lambda name: read_toml(Path(name)), ConfigError),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_library_reads_no_device(
    read: Callable[[str], object], error: type[Exception], kind: str
) -> None:
    put(kind, "x")
    with pytest.raises(error, match=rf"it is {KINDS[kind]}, not a file"):
        read("x")


def test_files_and_folders_and_nothing_are_left_to_who_opens_them(folder: Path) -> None:
    assert [find_file_fault(path) for path in ("cat.png", ".", "none", folder)] == [None] * 4


# Names

LONG, DEEP = "a" * 5000 + ".png", "/".join(["a" * 100] * 50) + ".png"
NAMES = {
    "long": (LONG, rf"its name has 5004 bytes; the limit is {MAX_NAME_BYTES}"),
    "wide": ("ä" * 200, rf"its name has 400 bytes; the limit is {MAX_NAME_BYTES}"),
    "deep": (DEEP, rf"its path has 5053 bytes; the limit is {MAX_PATH_BYTES}"),
    "NUL": ("a\0b.png", "its name holds a NUL character"),
    "surrogate": ("a\ud800.png", "holds half of a surrogate pair"),
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize(
    ("use", "error"),
    [
        (load_image, ImageError),
        (Job.from_toml, ConfigError),
        (read_settings, ImageError),
        (load_embeddings, CheckpointError),
        (load_pipeline, UnknownModel),
        (lambda name: load_controlnet(name, tiny.sd_pipeline()), UnknownModel),
        (lambda name: __import__("imprompt").load_adapter(name), UnknownModel),
        (load_image_encoder, UnknownModel),
        (lambda name: check_output(Path(name)), OutputError),
        (lambda name: Reference(name + ".safetensors"), CheckpointError),
        (lambda name: parse_job({"references": name}), ConfigError),
        (lambda name: parse_job({"references": "cat.png", "base": name}), ConfigError),
        (lambda name: parse_job({"references": "cat.png", "adapter": name}), ConfigError),
        (lambda name: parse_job({"references": "cat.png", "image_encoder": name}), ConfigError),
        (lambda name: parse_job({"references": "cat.png", "output": name}), ConfigError),
        (lambda name: parse_job({"references": "cat.png", "controls": {"image": name}}), ConfigError),
        (
            lambda name: parse_job({"references": "cat.png", "controls": {"image": "a", "model": name}}),
            ConfigError,
        ),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_everywhere(
    use: Callable[[str], object], error: type[Exception], case: str
) -> None:
    name, message = NAMES[case]
    with pytest.raises(error, match=message.split(" has ")[0]) as raised:
        use(name)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["a" * MAX_NAME_BYTES, "ä" * 127, "/".join(["a" * 200] * 20), ""])
def test_a_name_that_a_file_can_have_is_left_alone(name: str) -> None:
    assert find_name_fault(name) is None


OPTIONS = ["--base", "--adapter", "--image-encoder", "--mask", "--negative", "--init-image", "--control"]


@pytest.mark.parametrize("option", [*OPTIONS, "--output", "--save-job", "--like", "--job"])
def test_an_option_with_a_long_name_is_one_line(imprompt: Imprompt, option: str) -> None:
    result = imprompt("generate", *([] if option in ("--like", "--job") else ["cat.png"]), option, LONG)
    assert_one_line(result, 1, "*; choose a shorter one")


@pytest.mark.parametrize("words", ["inspect LONG", "convert LONG a.bin", "convert a.bin LONG", "train LONG"])
def test_a_command_on_a_long_name_is_one_line(imprompt: Imprompt, words: str) -> None:
    long = LONG.replace(".png", ".bin" if "convert" in words else ".png")
    result = imprompt(*(long if word == "LONG" else word for word in words.split()))
    assert_one_line(result, 1, "*; choose a shorter one")


# Numbers and nesting in TOML

TOML = {
    "a deep array": ("x = " + "[" * 20_000 + "]" * 20_000, "too deep to be read"),
    "a deep table": ("x = " + "{a = " * 20_000 + "1" + "}" * 20_000, "too deep to be read"),
    "a dotted key": (".".join(["a"] * 100_000) + " = 1", "is a key of more than 64 parts"),
    "a quoted dotted key": (".".join(['"a"'] * 100_000) + " = 1", "is a key of more than 64 parts"),
    "a spaced dotted key": (" . ".join(["a"] * 65) + " = 1", "is a key of more than 64 parts"),
    "a dotted heading": (f"[{'.'.join(['a'] * 100_000)}]", "is a key of more than 64 parts"),
    "5,000 digits": ("seed = " + "1" * 5000, "a number of more than 4,300 digits"),
    "4,000 digits": (
        "seed = " + "1" * 4000,
        r"seed is a whole number of about 4000 digits; the largest is 92",
    ),
    "5,000 hexadecimal digits": ("seed = 0x" + "f" * 5000, r"seed is a whole number of about 6021 digits"),
    "5,000 binary digits": ("a.b = [0b" + "1" * 5000 + "]", r"a\.b is a whole number of about 1506 digits"),
    "a number below all": ("seed = -9223372036854775809", "the largest is 9223372036854775807"),
    "2 MB": ("prompt = '" + "a" * 2_000_000 + "'", r"has 2,000,011 bytes; a .* has at most 1,048,576"),
    "no UTF-8": ("prompt = '\udcff'", "is not TOML"),
    "a NUL": ("prompt = '\0'", "is not TOML"),
}


@pytest.mark.parametrize("read", [Job.from_toml, lambda path: read_toml(Path(path))])
@pytest.mark.parametrize("case", TOML)
def test_toml_that_is_too_deep_or_large_is_refused(read: Callable[[str], object], case: str) -> None:
    text, message = TOML[case]
    Path("x.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=message) as raised:
        read("x.toml")
    assert str(raised.value).startswith("x.toml")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("command", ["generate --job x.toml", "inspect x.toml", "train x.toml"])
@pytest.mark.parametrize("case", ["a deep array", "a dotted key", "5,000 hexadecimal digits", "2 MB"])
def test_a_command_on_toml_that_is_too_deep_is_one_line(imprompt: Imprompt, command: str, case: str) -> None:
    Path("x.toml").write_text(TOML[case][0])
    assert_one_line(imprompt(*command.split()), 1, "x.toml*")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.seed=" + "1" * 5000, "more than 4,300 digits"),
        ("training.seed=0x" + "1" * 500, "is a whole number of about 602 digits"),
        ("data=" + "[" * 50_000, "too deep to be read"),
        ("data={" + ".".join("a" * 50_000) + "=1}", "is a key of more than 64 parts"),
        (".".join("a" * 50_000) + "=1", "is a key of more than 64 parts"),
    ],
)
def test_a_setting_that_is_too_deep_or_large_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        replace_setting({}, setting)
    assert str(raised.value).startswith("--set ")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "a.b.c = 1",
        "steps = " + str([0.1 + i for i in range(2000)]),
        "prompt = '" + "word. " * 3000 + "'",
        f"x = {2**63 - 1}\ny = {-(2**63)}",
        "x = [[[[1]]]]",
    ],
)
def test_ordinary_toml_is_read(text: str) -> None:
    Path("x.toml").write_text(text.replace("word. ", "Two words. "))
    assert read_toml(Path("x.toml"))


# What a job may be

CAT = {"images": "cat.png"}
JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "size 1e6": ({"size": 10**6}, "width must be less than or equal to 8192, not 1000000"),
    "size 1e9": ({"size": 10**9}, "width must be less than or equal to 8192, not 1000000000"),
    "size 1e30": ({"width": 64, "height": 10**30}, "height must be less than or equal to 8192, not 10{30}"),
    "size 8192": (
        {"size": 8192},
        "a picture may have 16,777,216 pixels in all, not 8192 × 8192; make it smaller",
    ),
    "a size of 5,000 digits": ({"size": 10**5000}, "width must be .* not so large a number"),
    "count 1e6": ({"count": 10**6}, "count must be less than or equal to 10000, not 1000000"),
    "count 1e30": ({"count": 10**30}, "count must be less than or equal to 10000, not 10{30}"),
    "prompts times count": (
        {"prompt": ["a"] * 101, "count": 100},
        "101 prompts with count 100 are too many pictures for one job; it may make 10,000",
    ),
    "100,000 prompts": ({"prompt": ["a"] * 100_000}, "100,000 prompts with count 1 are too many pictures"),
    "10,000 references": ({"references": [CAT] * 10_000}, "10,000 references are too many .* may have 256"),
    "10,000 images": (
        {"references": [{"images": ["cat.png"] * 10_000}]},
        r"references\[0\]\.images: 10,000 pictures are too many for one reference; it may have 1,000",
    ),
    "a prompt of 10 MB": ({"prompt": "a" * 10**7}, "prompt: a text of 10,000,000 characters is too long"),
    "one long prompt of two": ({"prompt": ["a", "b" * 20_001]}, "a text of 20,001 characters is too long"),
    "a negative prompt of 10 MB": ({"negative_prompt": "a" * 10**7}, "negative_prompt: a text of 10,000,000"),
    "a long text without": (
        {"references": [CAT | {"without": "a" * 20_001}]},
        r"references\[0\]\.without: a text of 20,001 characters",
    ),
    "a lone surrogate": ({"prompt": "a \ud800 b"}, r"prompt: '\\ud800' is half of a surrogate pair"),
    "another lone surrogate": ({"negative_prompt": "\udfff"}, r"negative_prompt: '\\udfff' is half of"),
    "steps 1e6": ({"steps": 10**6}, "steps must be less than or equal to 10000, not 1000000"),
    "steps 1e30": ({"steps": 10**30}, "steps must be less than or equal to 10000"),
}


@pytest.mark.parametrize("case", JOBS)
def test_a_job_that_is_too_large_is_refused_by_name(case: str) -> None:
    values, message = JOBS[case]
    with pytest.raises(ConfigError, match=message) as raised:
        parse_job({"references": CAT} | values)
    assert len(str(raised.value)) < 500


DATED = ["prompt", "steps", "seed", "references", "output", "guidance_interval", "frob"]
DATES = ["1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"]


@pytest.mark.parametrize("date", DATES)
@pytest.mark.parametrize(
    "key", ["prompt", "steps", "seed", "references", "output", "guidance_interval", "frob"]
)
def test_a_date_in_a_job_is_refused_by_name(key: str, date: str) -> None:
    Path("x.toml").write_text(
        f"{key} = {date}\n" + ("" if key == "references" else 'references = "cat.png"\n')
    )
    with pytest.raises(ConfigError, match=rf"x.toml: .*{key}"):
        Job.from_toml("x.toml")


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "1000000"],
        ["--size", "1" + "0" * 30],
        ["--size", "8192"],
        ["--count", "1000000"],
        ["--count", "1" + "0" * 30],
        ["--prompt", "a" * 100_000],
        ["--prompt", "\ud800"],
        ["--steps", "1000000000"],
        [f"{'cat.png ' * 300}"],
    ],
)
def test_options_that_are_too_large_are_one_line(imprompt: Imprompt, toy: ToyModel, words: list[str]) -> None:
    options = [word for word in toy.options if word not in ("--steps", "2")]
    many = words[0].split() if len(words) == 1 else words
    assert_one_line(imprompt("generate", "cat.png", *options, *many), 1, "*")
    assert not Path("out.png").exists()


@pytest.mark.parametrize("words", [["--count", "1000000"], ["--count", "1" + "0" * 30]])
def test_a_count_beside_a_job_has_the_same_limit(imprompt: Imprompt, words: list[str]) -> None:
    Path("x.toml").write_text('references = "cat.png"\n')
    result = imprompt("generate", "--job", "x.toml", *words)
    assert_one_line(result, 1, "count must be less than or equal to 10000, not *")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a" * 10**7}, "prompt: a text of 10,000,000 characters is too long"),
        ({"negative_prompt": "\ud800"}, r"negative_prompt: '\\ud800' is half of a surrogate pair"),
        ({"steps": 10**9}, "steps may be 10000, not 1000000000; give fewer"),
        ({"size": (10**6, 64)}, "a picture may be 8192 pixels wide or high, not 1000000"),
        ({"size": (64, 10**30)}, "a picture may be 8192 pixels wide or high, not 10{30}"),
        ({"size": (8192, 8192)}, "a picture may have 16,777,216 pixels in all, not 8192 × 8192"),
    ],
)
def test_the_library_has_the_same_limits(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(tiny.sd_pipeline(), Settings(**settings), [0])


def test_a_panorama_within_the_limit_is_allowed() -> None:
    assert parse_job({"references": CAT, "width": 8192, "height": 2048}).width == 8192


@pytest.mark.parametrize("images", [MAX_IMAGES + 1, 100_000])
def test_a_reference_of_too_many_pictures_is_refused(images: int) -> None:
    embedding = torch.zeros(images, tiny.EMBEDDING_DIM)
    kept = ImageEmbeddings({"image_embedding": embedding}, {"image_embedding": embedding[0]})
    kept.save("many.safetensors")
    for given in (embedding, kept, "many.safetensors", ["cat.png"] * images):
        with pytest.raises(InvalidReference, match=f"{images:,} pictures are too many .* it may have 1,000"):
            Reference(given)
    Reference(embedding[:MAX_IMAGES])


# Pictures


THIN = {"1 × 60000": (1, 60_000), "60000 × 1": (60_000, 1), "8 × 80000": (8, 80_000), "33 × 2": (33, 2)}


@pytest.mark.parametrize("option", ["--init-image", "--inpaint", "--control"])
@pytest.mark.parametrize("case", THIN)
def test_a_hair_thin_picture_is_not_painted_on(
    imprompt: Imprompt, toy: ToyModel, case: str, option: str
) -> None:
    Image.new("L", THIN[case]).save("thin.png")
    start = ["--init-image", "cat.png"] if option == "--inpaint" else []
    result = imprompt("generate", "cat.png", *toy.options, *start, option, "thin.png")
    assert_one_line(result, 1, f"*thin.png has {case} pixels, longer than 16:1; crop it")


@pytest.mark.parametrize("case", THIN)
def test_the_library_makes_no_hair_thin_picture(case: str) -> None:
    thin, square = Image.new("RGB", THIN[case]), tiny.picture()
    for settings in (Settings(init_image=thin), Settings(init_image=square, inpaint=thin)):
        with pytest.raises(ConfigError, match=f"has {case} pixels, longer than 16:1"):
            check_settings(tiny.sd_pipeline(), settings, [0])


def test_a_picture_of_16_to_1_is_painted_on() -> None:
    pipe, wide = tiny.sd_pipeline(), Settings(init_image=Image.new("RGB", (160, 10)))
    check_settings(pipe, wide, [0])
    arguments = build_call_arguments(pipe, wide)
    assert arguments["width"] == 16 * arguments["height"]


def test_every_limit_leaves_an_ordinary_generation_alone(imprompt: Imprompt, toy: ToyModel) -> None:
    assert imprompt("generate", "cat.png", *toy.options) == Result(0, "wrote out.png\n", "")


# The page


def limits() -> list[tuple[str, str]]:
    """Constant and limit of every row of docs/limits.md that names a constant."""
    rows = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip(" `") for cell in row.split("|")] for row in rows if "`imprompt." in row]
    return [(row[3], row[2]) for row in cells if len(row) == 5]


@pytest.mark.parametrize(("constant", "limit"), [row for row in limits() if row[0].split(".")[-1].isupper()])
def test_the_page_says_what_the_code_does(constant: str, limit: str) -> None:
    module, _, name = constant.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    assert re.match(rf"{value:,g}\b" if isinstance(value, float) else rf"{value:,}\b", limit), (value, limit)


def test_every_limit_stands_on_the_page() -> None:
    assert len(limits()) >= 25
    source = Path(importlib.import_module("imprompt").__file__ or "").parent
    constants = (re.findall(r"^(MAX_\w+) =", path.read_text(), re.MULTILINE) for path in source.rglob("*.py"))
    page = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
    # a number of CLIP's training, and how much a run names, examines and repeats
    no_limits = {"MAX_LOG_SCALE", "MAX_BAD_STEPS", "MAX_EXAMINED", "MAX_NAMED", "MAX_NAMED_FAULTS"}
    assert [name for found in constants for name in found if name not in page and name not in no_limits] == []
