"""Versions, device and precision, as `imprompt --version` prints them without importing torch."""

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Result
from imprompt import __version__
from imprompt.runtime import machine
from imprompt.runtime.machine import (
    ComputeChoice,
    Device,
    describe_installation,
    find_device,
    read_choice,
    read_cpu_flags,
    write_choice,
)

CHOICE = ComputeChoice("bf16", channels_last=True, chunked_attention=False, speedup=2.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_version_comes_first_and_the_libraries_follow(imprompt: Callable[..., Result]) -> None:
    code, output, error = imprompt("--version")
    lines = output.splitlines()
    assert (code, error, len(lines)) == (0, "", 7)
    assert lines[:2] == [f"imprompt {__version__}", f"Python {platform.python_version()}"]
    assert f"torch {importlib.metadata.version('torch')}" in lines
    assert lines[5].startswith("device: ")
    assert lines[6].startswith("precision: ")


def test_the_fastest_way_is_shown_once_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_device", lambda: Device("cpu", "a processor"))
    beginning = "float32 for pictures; the fastest (auto): "
    assert describe_installation()["precision"] == f"{beginning}not measured yet"
    write_choice(CHOICE)
    fastest = "bf16, channels last (2.0 times as fast as plain float32)"
    assert describe_installation()["precision"] == f"{beginning}{fastest}"


def test_a_choice_is_read_as_it_was_written() -> None:
    write_choice(CHOICE)
    assert read_choice() == CHOICE


def test_flags_are_those_of_the_processor_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name : x\nflags\t\t: fpu amx_bf16\n"
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert read_cpu_flags() == {"fpu", "amx_bf16"}
    text = ""
    assert read_cpu_flags() == frozenset()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"processor": "another", "torch": "1"}'])
def test_a_record_of_another_machine_or_a_damaged_one_is_none(cache: Path, content: str) -> None:
    cache.mkdir()
    (cache / "precision.json").write_text(content)
    assert read_choice() is None


def test_a_cache_that_cannot_be_written_stops_nothing(cache: Path) -> None:
    cache.write_text("a file in place of the folder")
    write_choice(CHOICE)
    assert read_choice() is None


@pytest.mark.parametrize(("build", "kind"), [("'12.8'", "cuda"), ("None", "cpu")])
def test_a_gpu_counts_if_torch_was_built_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str, kind: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(
        f"cuda: Optional[str] = {build}\nhip: Optional[str] = None\n"
    )
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "torch" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(machine, "_name_nvidia_gpu", lambda: "a GPU")
    assert find_device().kind == kind
    monkeypatch.setattr(machine, "_name_nvidia_gpu", lambda: None)
    assert find_device().kind == "cpu"


def test_the_record_names_no_person_and_no_folder(cache: Path) -> None:
    write_choice(CHOICE)
    record = json.loads((cache / "precision.json").read_text())
    assert set(record) == {"processor", "torch", *ComputeChoice._fields}
