"""Data sources made to hang or to fill the memory: one sentence, or one sample left out."""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data_sets
from imprompt.errors import DataError
from imprompt.training.config import DataSettings
from imprompt.training.samples import Sample, Unreadable, files, open_source
from imprompt.training.samples.files import MAX_FILE_BYTES
from imprompt.training.samples.name_patterns import MAX_FILES

pytestmark = pytest.mark.usefixtures("in_time")


def read(source: str | Path) -> list[Sample | Unreadable]:
    parts = open_source(str(source), DataSettings(), 2)
    assert all(part.identity for part in parts)
    return [sample for part in parts for sample in part.samples()]


def reasons(source: str | Path) -> list[str]:
    """Why samples cannot be used; "" for those that can, whose keys must be there."""
    found = read(source)
    assert all(len(one.key) == 32 for one in found if isinstance(one, Sample))
    return [one.reason if isinstance(one, Unreadable) else "" for one in found]


DEEP = "[" * 100_000
GOOD = '{"image": "000000.png", "text": "a"}'

ROWS = {
    "a deep array": (f'{{"image": {DEEP}}}', "it is no JSON"),
    "a deep object": ('{"a":' * 100_000, "it is no JSON"),
    "5,000 digits": (f'{{"image": "000000.png", "text": {"1" * 5000}}}', "it is no JSON"),
    "a lone surrogate": ('{"image": "000000.png", "text": "\\ud800"}', "half of a surrogate pair"),
    "a lone surrogate as a name": (
        '{"image": "\\ud800.png", "text": "a"}',
        "its name holds half of a surrogate pair",
    ),
    "a deep array in a cell": (
        json.dumps({"image": DEEP, "text": "a"}),
        "cannot be read: its name has 100000",
    ),
    "a deep face": (
        json.dumps({"image": "000000.png", "text": "a", "face": DEEP}),
        "its name has 100000 bytes",
    ),
    "a NUL as a name": ('{"image": "a\\u0000", "text": "a"}', "its name holds a NUL"),
    "a pipe": ('{"image": "pipe.png", "text": "a"}', "it is a named pipe, not a file"),
    "a device": ('{"image": "/dev/zero", "text": "a"}', "it is a device, not a file"),
    "a sparse file": (
        '{"image": "sparse.png", "text": "a"}',
        "sparse.png has 20,000,000,000 bytes; .* 536,870,912",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data_sets.write_pictures(tmp_path, 3)
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(20_000_000_000)
    return tmp_path


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_used_is_left_out_with_its_reason(folder: Path, case: str) -> None:
    line, message = ROWS[case]
    (folder / "data.jsonl").write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    first, second, third = reasons(folder / "data.jsonl")
    assert (first, third) == ("", "")
    assert re.search(message, second), second
    assert len(second) < 500


@pytest.mark.parametrize("name", ["pipe.png", "sparse.png", "zero.png"])
def test_a_picture_in_a_folder_that_is_no_file_or_too_large_is_left_out(folder: Path, name: str) -> None:
    for number in range(3):
        (folder / f"{number:06d}.txt").write_text("a")
    (folder / "zero.png").symlink_to("/dev/zero")
    for other in {"pipe.png", "sparse.png", "zero.png"} - {name}:
        (folder / other).unlink()
    (folder / name).with_suffix(".txt").write_text("a")
    assert sorted(reasons(folder))[:3] == ["", "", ""]
    assert sorted(reasons(folder))[3].startswith((str(folder / name), name))


SOURCES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a deep JSON": ("x.json", lambda path: path.write_text(DEEP), "too deep to be read"),
    "a JSON of 5,000 digits": ("x.json", lambda path: path.write_text("1" * 5000), "is no JSON"),
    "a pipe as JSON lines": ("x.jsonl", os.mkfifo, "it is a named pipe, not a file"),
    "a pipe as CSV": ("x.csv", os.mkfifo, "it is a named pipe, not a file"),
    "a pipe as a tar": ("x.tar", os.mkfifo, "it is a named pipe, not a file"),
    "a device as JSON lines": ("x.jsonl", lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "a device as Parquet": ("x.parquet", lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "a device as JSON": ("x.json", lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "UTF-16": (
        "x.jsonl",
        lambda path: path.write_text(GOOD, encoding="utf-16"),
        "is UTF-16 text; save it as",
    ),
    "UTF-16 CSV": ("x.csv", lambda path: path.write_text("image,text", encoding="utf-16"), "is UTF-16 text"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path, case: str) -> None:
    name, write, message = SOURCES[case]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path / name)
    assert len(str(raised.value)) < 500


PATTERNS = {
    "a range of 1e9": ("{0..999999999}.tar", f"names more than {MAX_FILES:,} files; name fewer"),
    "a range of 1e18": ("{0..999999999999999999}.tar", f"names more than {MAX_FILES:,} files"),
    "a product": ("{0..99}{0..99}{0..99}{0..99}.tar", f"names more than {MAX_FILES:,} files"),
    "a product of choices": ("{a,b}" * 20 + ".tar", f"names more than {MAX_FILES:,} files"),
    "21 braces": ("{a,b}" * 21 + ".tar", "has more than 20 braces"),
    "2,000 braces": ("{a}" * 2000 + ".tar", "has more than 20 braces"),
    "a range of 5,000 digits": ("{0.." + "9" * 5000 + "}.tar", "its name has .* bytes; the limit is 255"),
    "a long name": ("a" * 5000 + ".tar", "its name has 5004 bytes; the limit is 255"),
    "a NUL": ("a\0.tar", "its name holds a NUL"),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_a_pattern_of_too_many_names_is_refused(case: str) -> None:
    pattern, message = PATTERNS[case]
    with pytest.raises(DataError, match=message) as raised:
        read(pattern)
    assert len(str(raised.value)) < 600


# Tar files


def write_tar(path: Path, members: dict[str, bytes], **pax: str) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), pax
            file.addfile(member, io.BytesIO(content))


FACTS = {
    "deep": DEEP.encode(),
    "digits": b'{"caption": ' + b"1" * 5000 + b"}",
    "a surrogate": b'{"caption": "\\ud800"}',
    "a list": b"[1]",
}


@pytest.mark.parametrize("case", FACTS)
def test_facts_in_a_tar_that_cannot_be_read_leave_their_sample_out(tmp_path: Path, case: str) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": data_sets.png(), "a.json": FACTS[case], "b.png": data_sets.png()})
    assert all(reason.startswith("it") for reason in reasons(tmp_path / "x.tar"))


@pytest.mark.parametrize("key", ["size", "comment"])
def test_a_pax_header_of_many_digits_is_damage(tmp_path: Path, key: str) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": data_sets.png(), "a.txt": b"a"}, comment="1" * 600)
    data = (tmp_path / "x.tar").read_bytes()
    record = b"%d %s=" % (613, b"comment")
    assert record in data
    broken = b"1" * 600 + b" " if key == "comment" else b"613 size=111"
    changed = data.replace(data[512 : 512 + len(broken)], broken, 1)
    (tmp_path / "x.tar").write_bytes(changed)
    with pytest.raises(DataError, match=r"is damaged: a pax header|ends in the middle"):
        read(tmp_path / "x.tar")


@pytest.mark.parametrize("suffix", ["png", "txt", "json"])
def test_a_huge_member_of_a_tar_leaves_its_sample_out(tmp_path: Path, suffix: str) -> None:
    """Sparse: it takes no room on the disk."""
    path, size = tmp_path / "x.tar", 20_000_000_000
    content = {"png": data_sets.png(), "txt": b"a", "json": b"{}"}
    with path.open("wb") as file:
        for name in ("a", "b"):
            for kind, data in content.items():
                if kind == "json" and suffix != "json":
                    continue
                huge = name == "a" and kind == suffix
                member = tarfile.TarInfo(f"{name}.{kind}")
                member.size = size if huge else len(data)
                file.write(member.tobuf(tarfile.GNU_FORMAT))
                if huge:
                    file.seek(member.size, os.SEEK_CUR)
                else:
                    file.write(data)
                file.seek(-(-file.tell() // 512) * 512)
        file.write(bytes(1024))
    first, second = reasons(path)
    assert second == ""
    assert first == "" if suffix == "json" else f"has {size:,} bytes; a file of a sample may have" in first


def test_the_limit_of_a_file_is_wider_than_any_picture() -> None:
    files.check_bytes(64 * 1024 * 1024 * 4, "x")
    assert MAX_FILE_BYTES > 64 * 1024 * 1024 * 4
