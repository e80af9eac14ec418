"""A cache that changed on the disk: what is not as it was written is made again, and that is said."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_parts
import tiny
from cache_parts import Sources, config
from imprompt.errors import DataError, OutputError
from imprompt.inputs.encoder import ImageEncoder
from imprompt.training.cache import CachedSamples, LiveSamples, build_cache
from imprompt.training.cache import cached_samples as reading_module
from imprompt.training.cache.shards import Shard
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.integrity import read_json, write_json
from slow_rows import mark_slow

Samples = CachedSamples | LiveSamples


@pytest.fixture(scope="module")
def base() -> FrozenBase:
    return FrozenBase(tiny.sd_pipeline(), ImageEncoder(tiny.vision_model()))


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Sources:
    made = Sources(monkeypatch)
    made.read["things"] = cache_parts.samples(11)
    return made


@pytest.fixture
def finished_rows(tmp_path: Path, base: FrozenBase, sources: Sources) -> list[bytes]:
    """A finished cache in the folder; returns what its rows are."""
    return content(build_cache(config(tmp_path), base))


def content(samples: Samples) -> list[bytes]:
    """Everything that training or a sample grid reads of each row."""
    rows = []
    for number in range(len(samples)):
        tensors = samples.row(number)
        rows.append(
            b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
            + samples.caption(number).encode()
            + samples.key(number)
            + samples.thumbnails(number).numpy().tobytes()
        )
    return rows


def flip(path: Path, place: float, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= mask
    path.write_bytes(data)


def file_of(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(f"cache/*/{pattern}"))[0]


FILES = ["shards/*.safetensors", "receipts/*.json", "manifest-*.json", "recipe.json"]
PLACES = [0.0, 0.002, 0.05, 0.1, 0.4, 0.7, 1.0]


@pytest.mark.parametrize("mask", [0x01, 0x80])
@pytest.mark.parametrize("place", mark_slow(PLACES, quick=(0.002, 0.7)))
@pytest.mark.parametrize("pattern", FILES)
def test_a_flipped_bit_changes_nothing_that_is_trained_on(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], pattern: str, place: float, mask: int
) -> None:
    path = file_of(tmp_path, pattern)
    was = path.read_bytes()
    flip(path, place, mask)
    again = build_cache(config(tmp_path), base)
    assert content(again) == finished_rows
    if pattern.startswith("shards"):
        assert path.read_bytes() == was
        assert again.notes == [f"{path} was not as it was written: this part of the cache was made again"]


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 100),
    "a deep array": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "other keys": lambda path: path.write_text("{}"),
    "other types": lambda path: path.write_text('{"shard": 1, "rows": "2", "skipped": [3]}'),
    "5,000 digits": lambda path: path.write_text(f'{{"rows": {"9" * 5000}}}'),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "another's": lambda path: shutil.copyfile(sorted(path.parent.glob("*"))[-1], path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", FILES[:3])
def test_a_damaged_file_of_a_cache_is_made_again(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], pattern: str, damage: str
) -> None:
    path = file_of(tmp_path, pattern)
    was = path.read_bytes()
    DAMAGES[damage](path)
    assert content(build_cache(config(tmp_path), base)) == finished_rows
    assert path.read_bytes() == was or damage == "another's"
    assert content(build_cache(config(tmp_path), base)) == finished_rows


@pytest.mark.parametrize("damage", ["cut", "a list", "other keys"])
@pytest.mark.parametrize("pattern", ["shards/*.safetensors", "manifest-*.json"])
def test_without_its_source_a_damaged_cache_is_refused_with_the_remedy(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], pattern: str, damage: str
) -> None:
    path = file_of(tmp_path, pattern)
    DAMAGES[damage](path)
    with pytest.raises(DataError, match=rf"{path.name} .*name data.source, and .*made again"):
        build_cache(config(tmp_path, data={"source": ""}), base)


@pytest.mark.parametrize("place", PLACES[4:])
def test_without_its_source_a_flipped_part_is_named(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], place: float
) -> None:
    path = file_of(tmp_path, "shards/*")
    flip(path, place, 1)
    with pytest.raises(DataError, match=rf"{path.name} is .*name data.source"):
        build_cache(config(tmp_path, data={"source": ""}), base)


def test_a_part_of_an_earlier_version_is_read_and_said_to_be_unchecked(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes]
) -> None:
    path = file_of(tmp_path, "shards/*")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["sha256"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    again = build_cache(config(tmp_path), base)
    assert content(again) == finished_rows
    (note,) = again.notes
    assert "written by an earlier version of imprompt and hold no SHA-256" in note


def test_a_shard_that_lost_its_receipt_is_checked_too(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes]
) -> None:
    path = file_of(tmp_path, "shards/*")
    flip(path, 0.9, 1)
    for receipt in tmp_path.glob("cache/*/receipts/*"):
        receipt.unlink()
    assert content(build_cache(config(tmp_path), base)) == finished_rows


@pytest.mark.parametrize("source", ["things", ""])
def test_a_finished_cache_in_a_read_only_folder_is_enough(
    tmp_path: Path,
    base: FrozenBase,
    finished_rows: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    stale = file_of(tmp_path, "shards/*").with_name(".imprompt-abc.part")
    stale.touch()
    os.utime(stale, (0, 0))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    for name in ("write_bytes", "write_text", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert content(build_cache(config(tmp_path, data={"source": source}), base)) == finished_rows


def test_an_unfinished_cache_in_a_read_only_folder_is_refused(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file_of(tmp_path, "shards/*").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is read-only for you"):
        build_cache(config(tmp_path), base)


@pytest.mark.parametrize("allowed", [64, 256, 4096, 10**6])
def test_a_cache_maps_fewer_parts_than_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (allowed, allowed))
    assert 8 <= reading_module.max_open_shards() <= min(1024, allowed // 2)


def test_parts_that_were_unmapped_are_read_again(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "max_open_shards", lambda: 1)
    assert content(build_cache(config(tmp_path), base)) == finished_rows


def test_the_digest_of_a_part_is_compared_once_when_the_cache_is_opened(
    tmp_path: Path, base: FrozenBase, finished_rows: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, check = [], Shard.check
    monkeypatch.setattr(Shard, "check", lambda self: (checked.append(self._path.name), check(self)))
    samples = build_cache(config(tmp_path), base)
    assert sorted(checked) == sorted(path.name for path in tmp_path.glob("cache/*/shards/*"))
    for _ in range(3):
        content(samples)
    assert len(checked) == 3
    for source in ("things", ""):
        build_cache(config(tmp_path, data={"source": source}), base, check=False)
    assert len(checked) == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_the_digest_of_samples_follows_from_what_they_are(
    tmp_path: Path, base: FrozenBase, sources: Sources, enabled: bool
) -> None:
    cache = {"enabled": enabled}
    first = build_cache(config(tmp_path / "1", cache=cache), base).digest
    assert build_cache(config(tmp_path / "2", cache={"enabled": True}), base).digest == first
    sources.read["things"] = cache_parts.samples(6)
    assert build_cache(config(tmp_path / "3", cache=cache), base).digest != first


@pytest.mark.parametrize("values", [{}, {"a": [1, 2.5, None]}, {"ü": {"b": "\n"}}, {"a": "x" * 1000}])
def test_json_is_read_as_it_was_written_and_a_changed_one_is_not(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "values.json"
    write_json(path, values)
    assert read_json(path) == values
    text = path.read_text()
    for old, new in (('"sha256": "', '"sha256": "0'), ("{", '{"extra": 1,')):
        path.write_text(text.replace(old, new, 1))
        assert read_json(path) is None
    assert read_json(tmp_path / "none.json") is None


def test_tensors_keep_their_values_under_a_digest(tmp_path: Path, finished_rows: list[bytes]) -> None:
    import safetensors.torch

    for path in tmp_path.glob("cache/*/shards/*"):
        tensors = safetensors.torch.load_file(path)
        assert torch.equal(tensors["keys"], torch.from_numpy(Shard(path).keys.copy()))
