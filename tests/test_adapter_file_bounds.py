"""Adapter files that are made to take for ever, or all memory: refused at once, in one sentence."""

import json
import pickle
import re
import resource
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import adapter_files
import tiny
from imprompt import load_adapter
from imprompt.checkpoint import convert_adapter, describe
from imprompt.checkpoint.bounds import MAX_TENSOR_NAME, MAX_TENSORS
from imprompt.checkpoint.projections import MAX_DEPTH
from imprompt.errors import CheckpointError
from imprompt.inputs.embeddings import ImageEmbeddings, load_embeddings
from imprompt.reference import Reference

SECONDS, MEGABYTES = 10, 600


@pytest.fixture(autouse=True)
def in_bounds() -> Iterator[None]:
    """A test that hangs, or takes much memory, fails."""

    def end(signum: int, frame: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    before, peak = signal.signal(signal.SIGALRM, end), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1024


def tensors() -> dict[str, Tensor]:
    return adapter_files.official(tiny.adapter(tiny.sd_unet()))


def write_header(path: Path, entries: dict[str, list[int]]) -> None:
    """A safetensors file of empty tensors, without going through its writer."""
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in entries.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def write_empty(path: Path, names: Iterator[str]) -> None:
    write_header(path, {name: [0] for name in names})


def write_safetensors(path: Path, made: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(made, path)


def write_pickled(path: Path, value: Any) -> None:
    """As torch.save, but a value that it could not walk through itself."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, value if name.endswith("data.pkl") else data)


def deep_pickle(depth: int) -> bytes:
    """Dictionaries in one another: {"a": {"a": ...}}."""
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"}" + b"s" * depth + b"."


def self_reference() -> bytes:
    value: dict[str, Any] = {}
    value["a"] = value
    return pickle.dumps(value, protocol=2)


def doubling(levels: int, leaf: Any) -> bytes:
    """Each level holds the one below twice: small in a file, endless to walk through."""
    value = leaf
    for _ in range(levels):
        value = {"a": value, "b": value}
    return pickle.dumps(value, protocol=2)


def doubling_tensor(path: Path) -> None:
    value: Any = torch.zeros(1)
    for _ in range(24):
        value = {"a": value, "b": value}
    torch.save(value, path)


def unpacking(path: Path, size: int) -> None:
    """An archive whose tensor is packed a thousandfold."""
    torch.save({"image_proj": {"latents": torch.zeros(4)}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, bytes(size) if name.endswith("data/0") else data)


def with_layers(count: int) -> dict[str, Tensor]:
    made = tensors()
    for number in range(count):
        for part in ("q", "k", "v", "out"):
            for side in ("down", "up"):
                made[f"ip_adapter.{2 * number}.to_{part}_lora.{side}.weight"] = torch.zeros(1, 1)
    return made


def perceiver(depth: int) -> dict[str, Tensor]:
    made = adapter_files.official(adapter_files.adapter(tiny.sd_unet(), "plus"))
    layer = {name: t for name, t in made.items() if name.startswith("image_proj.layers.0.")}
    for number in range(depth):
        made |= {name.replace("layers.0.", f"layers.{number}.", 1): t.clone() for name, t in layer.items()}
    return made


def add_name(name: str) -> dict[str, Tensor]:
    return tensors() | {name: torch.zeros(1)}


ONES = "1" * 5000
PATTERN = "down_blocks." + "a.attn1" * 3000 + "!"

FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "100,000 entries": (
        lambda path: write_empty(path, (f"image_proj.{n}" for n in range(100_000))),
        "header of .* bytes; the limit is|more than 10,000 tensors",
    ),
    "300,000 entries": (
        lambda path: write_empty(path, (f"image_proj.{n}" for n in range(300_000))),
        r"has a header of \d\d,\d{3},\d{3} bytes; the limit is 8,388,608",
    ),
    "10,001 entries": (
        lambda path: write_empty(path, (f"image_proj.{n}" for n in range(MAX_TENSORS + 1))),
        "holds more than 10,000 tensors",
    ),
    "10,001 pickled tensors": (
        lambda path: torch.save({str(n): torch.zeros(1) for n in range(MAX_TENSORS + 1)}, path),
        "holds more than 10,000 tensors",
    ),
    "1,300 layers of LoRA": (
        lambda path: write_safetensors(path, with_layers(1300)),
        "more than 10,000 tensors",
    ),
    "a number of 5,000 digits": (
        lambda path: write_safetensors(path, add_name(f"ip_adapter.{ONES}.to_k_ip.weight")),
        "whose name 'ip_adapter.1.*' has 5,026 characters; the limit is 256",
    ),
    "a path of 5,000 digits": (
        lambda path: write_safetensors(path, add_name(f"down_blocks.{ONES}.attn2.processor.to_k_ip.weight")),
        "whose name 'down_blocks.1.*' has 5,0.. characters",
    ),
    "a name on which a pattern backtracks": (
        lambda path: write_safetensors(path, add_name(PATTERN)),
        "whose name 'down_blocks.a.attn1a.*' has 21,013 characters",
    ),
    "a long pickled name": (
        lambda path: torch.save({"a" * 300: torch.zeros(1)}, path),
        "has 300 characters; the limit is 256",
    ),
    "a perceiver 65 deep": (
        lambda path: write_safetensors(path, perceiver(MAX_DEPTH + 1)),
        "its perceiver has 65 layers; the limit is 64",
    ),
    "a perceiver 700 deep": (
        lambda path: write_safetensors(path, perceiver(700)),
        "its perceiver has 700 layers; the limit is 64",
    ),
    "a pickle that holds itself": (
        lambda path: write_pickled(path, self_reference()),
        "dictionaries in dictionaries, more than 32 deep",
    ),
    "a pickle 33 deep": (lambda path: write_pickled(path, deep_pickle(33)), "more than 32 deep"),
    "a pickle 100,000 deep": (lambda path: write_pickled(path, deep_pickle(100_000)), "more than 32 deep"),
    "a pickle that doubles 40 times": (
        lambda path: write_pickled(path, doubling(40, {})),
        "dictionaries in dictionaries, ",
    ),
    "a pickle that doubles 24 times": (
        lambda path: write_pickled(path, doubling(24, {})),
        "dictionaries in dictionaries, ",
    ),
    "a tensor that doubles 24 times": (
        doubling_tensor,
        "dictionaries in dictionaries|more than 10,000 tensors",
    ),
    "an archive that unpacks to 20 MB": (
        lambda path: unpacking(path, 20_000_000),
        "would unpack to 20,...,...; torch.save does not compress",
    ),
    "an archive that unpacks to 200 MB": (
        lambda path: unpacking(path, 200_000_000),
        "would unpack to 200,...,...; torch.save does not compress",
    ),
    "an index of 17 MB": (
        lambda path: write_pickled(path, pickle.dumps("a" * 17_000_000, protocol=2)),
        "of an adapter has at most 16,777,216",
    ),
}


def problem_of(use: Callable[[Path], object]) -> Callable[[Path], str]:
    def attempt(path: Path) -> str:
        with pytest.raises(CheckpointError) as raised:
            use(path)
        return str(raised.value)

    return attempt


def list_problems(path: Path) -> str:
    try:
        return "; ".join(describe(path).problems)
    except CheckpointError as error:
        return str(error)


USES: dict[str, Callable[[Path], str]] = {
    "load": problem_of(lambda path: load_adapter(path, image_encoder=None)),
    "convert": problem_of(lambda path: convert_adapter(path, path.with_name("y.safetensors"))),
    "inspect": list_problems,
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", FILES)
def test_a_file_made_to_take_for_ever_is_refused(tmp_path: Path, case: str, use: str) -> None:
    write, message = FILES[case]
    write(tmp_path / "x")
    begun = time.monotonic()
    problem = USES[use](tmp_path / "x")
    assert time.monotonic() - begun < 3
    assert re.search(message, problem), problem
    assert len(problem) < 2000 if use == "inspect" else len(problem) < 500
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("count", [9, 30_000, 100_000])
def test_embeddings_of_many_tensors_are_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.safetensors"
    values = torch.zeros(1, 4)
    ImageEmbeddings({"image_embedding": values}, {"image_embedding": values[0]}).save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    more = {f"a{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(count)}
    text = json.dumps(more | header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(
        CheckpointError, match=r"holds .* tensors; image embeddings have at most 10|has a header of"
    ):
        load_embeddings(path)


def test_every_bound_is_wider_than_what_is_published(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "deep", perceiver(MAX_DEPTH))
    load_adapter(tmp_path / "deep", image_encoder=None)
    name = "a" * MAX_TENSOR_NAME
    write_empty(tmp_path / "many", (str(n) + name[len(str(n)) :] for n in range(MAX_TENSORS)))
    assert describe(tmp_path / "many").parameters == 0


# float8


FORMATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("variant", ["base", "plus", "faceid"])
@pytest.mark.parametrize("narrow", FORMATS)
def test_a_float8_adapter_is_computed_in_float16_or_wider(
    tmp_path: Path, narrow: torch.dtype, variant: str, mixed: bool
) -> None:
    made = adapter_files.official(adapter_files.adapter(tiny.sd_unet(), variant))
    kept = {
        name: tensor if mixed and name.startswith("image_proj.") else tensor.to(narrow)
        for name, tensor in made.items()
    }
    safetensors.torch.save_file(kept, tmp_path / "x.safetensors")
    loaded = load_adapter(tmp_path / "x.safetensors", image_encoder=None)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32 if mixed else torch.float16}
    for name, tensor in adapter_files.official(loaded).items():
        assert torch.equal(tensor.float(), kept[name].float())


@pytest.mark.parametrize("narrow", FORMATS)
def test_float8_embeddings_are_computed_in_float16(tmp_path: Path, narrow: torch.dtype) -> None:
    values = torch.linspace(-1, 1, 2 * tiny.EMBEDDING_DIM).reshape(2, -1).to(narrow)
    kept = ImageEmbeddings({"image_embedding": values}, {"image_embedding": values[0]})
    kept.save(tmp_path / "x.safetensors")
    loaded = load_embeddings(tmp_path / "x.safetensors").inputs["image_embedding"]
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded, values.half())
    assert Reference(tmp_path / "x.safetensors").images is not None


@pytest.mark.parametrize("name", ["float8_e8m0fnu"])
def test_a_format_of_scales_is_refused(tmp_path: Path, name: str) -> None:
    made = tensors()
    made["ip_adapter.1.to_k_ip.weight"] = torch.zeros(
        made["ip_adapter.1.to_k_ip.weight"].shape, dtype=torch.uint8
    ).view(getattr(torch, name))
    torch.save(made, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=f"to_k_ip.weight is torch.{name} .*not plain floating-point"):
        load_adapter(tmp_path / "x.bin", image_encoder=None)
