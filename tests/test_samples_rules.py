"""Rules that hold in every kind of data: hidden files, samples not fetched, suffixes, literal paths."""

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data_sets
from imprompt.errors import DataError
from imprompt.training.config import Columns, DataSettings
from imprompt.training.samples import Sample, Unreadable, open_source

DOUBLE = b"\x00\x05\x16\x07" + bytes(100)
"""How a file of macOS's AppleDouble begins."""


def read(source: str | Path, **settings: Any) -> list[Sample | Unreadable]:
    return [
        sample for part in open_source(str(source), DataSettings(**settings), 2) for sample in part.samples()
    ]


def texts(source: str | Path, **settings: Any) -> list[str]:
    return [
        sample.text if isinstance(sample, Sample) else f"unreadable: {sample.reason}"
        for sample in read(source, **settings)
    ]


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data_sets.add_member(tar, name, content)
    return path


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Captions beside pictures


@pytest.mark.parametrize("word", ["caption", "blip2.txt", "CAP", "tags"])
def test_captions_of_a_folder_are_read_from_the_suffix_that_is_named(word: str, tmp_path: Path) -> None:
    data_sets.write_folder(tmp_path, 3)
    for number in range(3):
        (tmp_path / f"{number:06d}.{word}").write_text(f"other {number}")
    assert texts(tmp_path, columns=Columns(text=word)) == ["other 0", "other 1", "other 2"]
    (tmp_path / f"000001.{word}").unlink()
    missing = f"unreadable: it has no caption: there is no 000001.{word}"
    assert texts(tmp_path, columns=Columns(text=word)) == ["other 0", missing, "other 2"]


def test_a_suffix_of_captions_that_no_file_has_is_refused(tmp_path: Path) -> None:
    data_sets.write_folder(tmp_path)
    with pytest.raises(DataError, match=r"no file like NAME\.nonsense, which data\.columns\.text asks for"):
        read(tmp_path, columns=Columns(text="nonsense"))


def test_the_suffix_of_a_caption_may_stand_in_capitals(tmp_path: Path) -> None:
    write_files(tmp_path, {"IMG_2.JPG": data_sets.png(), "IMG_2.TXT": b"a cat"})
    assert texts(tmp_path) == ["a cat"]


def test_a_column_of_pictures_is_refused_for_a_folder_where_it_has_no_effect(tmp_path: Path) -> None:
    data_sets.write_folder(tmp_path)
    with pytest.raises(DataError, match=r"data\.columns\.image = 'large' has no effect on the folder"):
        read(tmp_path, columns=Columns(image="large"))


# Hidden files


def hidden_and_not(ending: str = "") -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in range(3):
        for suffix, content in (("png", data_sets.png()), ("txt", f"thing {number}".encode())):
            files[f"{ending}._{number:03d}.{suffix}"] = DOUBLE
            files[f"{ending}{number:03d}.{suffix}"] = content
        files[f"{ending}.trash/{number:03d}.png"] = data_sets.png()
        files[f"__MACOSX/._{number:03d}.png"] = DOUBLE
    return files


@pytest.mark.parametrize("beginning", ["", "./", "set/", "./a.b/"])
def test_a_tar_made_on_a_mac_has_the_same_samples(beginning: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "mac.tar", hidden_and_not(beginning))
    assert texts(path) == ["thing 0", "thing 1", "thing 2"]


def test_a_folder_from_a_mac_has_the_same_samples(tmp_path: Path) -> None:
    assert texts(write_files(tmp_path, hidden_and_not())) == ["thing 0", "thing 1", "thing 2"]


def test_hidden_tar_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", hidden_and_not())
    (tmp_path / "._0.tar").write_bytes(DOUBLE)
    assert texts(tmp_path) == texts(tmp_path / "*.tar") == ["thing 0", "thing 1", "thing 2"]


# Samples that img2dataset could not fetch


def fetched_and_not(folder: Path) -> list[dict[str, Any]]:
    """Seven rows: the first, the last and others were not fetched."""
    rows: list[dict[str, Any]] = []
    for number, failed in enumerate((True, False, True, True, False, False, True)):
        name = f"{number}.png"
        (folder / name).write_bytes(data_sets.png(seed=number))
        status = ("failed_to_resize" if number % 2 else "failed_to_download") if failed else "success"
        rows.append({"image": None if failed else name, "text": f"thing {number}", "status": status})
    return rows


def rows_as_json(folder: Path) -> str:
    (folder / "data.json").write_text(json.dumps(fetched_and_not(folder)))
    return str(folder / "data.json")


def rows_as_json_lines(folder: Path) -> str:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fetched_and_not(folder)))
    return str(folder / "data.jsonl")


def rows_as_csv(folder: Path) -> str:
    rows = fetched_and_not(folder)
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return str(folder / "data.csv")


def with_bytes(folder: Path) -> list[dict[str, Any]]:
    return [
        {**row, "image": (folder / row["image"]).read_bytes() if row["image"] else None}
        for row in fetched_and_not(folder)
    ]


def rows_as_parquet(folder: Path, *, names: bool = False) -> str:
    import pyarrow
    from pyarrow import parquet

    rows = fetched_and_not(folder) if names else with_bytes(folder)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet", row_group_size=3)
    return str(folder / "data.parquet")


def rows_as_parquet_of_names(folder: Path) -> str:
    return rows_as_parquet(folder, names=True)


def rows_as_data_set(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_list(with_bytes(folder)).save_to_disk(str(folder / "saved"))
    return f"hf:{folder / 'saved'}"


def rows_as_tar(folder: Path) -> str:
    files: dict[str, bytes] = {}
    for number, row in enumerate(fetched_and_not(folder)):
        if row["image"]:
            files[f"{number}.png"] = (folder / row["image"]).read_bytes()
        files[f"{number}.txt"] = row["text"].encode()
        files[f"{number}.json"] = json.dumps({"status": row["status"]}).encode()
    return str(write_tar(folder / "data.tar", files))


@pytest.mark.parametrize(
    "write",
    [
        rows_as_json,
        rows_as_json_lines,
        rows_as_csv,
        rows_as_parquet,
        rows_as_parquet_of_names,
        rows_as_data_set,
        rows_as_tar,
    ],
)
@pytest.mark.parametrize("part_size", [1, 2, 7])
def test_what_was_not_fetched_is_no_sample_in_any_kind_of_data(
    write: Callable[[Path], str], part_size: int, tmp_path: Path
) -> None:
    parts = open_source(write(tmp_path), DataSettings(), part_size)
    samples = [list(part.samples()) for part in parts]
    assert [len(some) for some in samples] == [len(part) for part in parts]
    assert len({part.identity for part in parts}) == len(parts)
    found = [sample.text for some in samples for sample in some if isinstance(sample, Sample)]
    assert found == ["thing 1", "thing 4", "thing 5"]
    assert sum(map(len, samples)) == 3


def test_a_column_named_status_of_another_meaning_leaves_no_row_out(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(data_sets.png())
    rows = [{"image": "0.png", "text": "a", "status": status} for status in ("approved", None, 3, "success")]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    assert texts(tmp_path / "data.json") == ["a"] * 4


# Dots in names


def test_a_tar_whose_names_have_more_dots_says_so(tmp_path: Path) -> None:
    files = {f"shoot 2.{number} final.{end}": b"a" for number in range(3) for end in ("png", "txt")}
    (text,) = texts(write_tar(tmp_path / "0.tar", files))
    assert "it has no picture; 'shoot 2.0 final.png' has more than one dot" in text
    assert "rename" in text


def test_a_caption_in_a_tar_whose_name_has_more_dots_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"cat.png": data_sets.png(), "cat.en.txt": b"a cat"})
    (text,) = texts(path)
    assert "there is no .txt; 'cat.en.txt' has more than one dot" in text


# Paths that look like patterns


@pytest.mark.parametrize("name", ["my [set]", "my {v2}", "{a,b}", "a?", "*", "[x]/{0..3}", "x/[!a]"])
@pytest.mark.parametrize(
    ("last", "count"), [("0.tar", 1), ("*.tar", 2), ("{0,1}.tar", 2), ("[0-9].tar", 2), ("", 2)]
)
def test_folders_whose_names_look_like_patterns_are_taken_as_they_are(
    name: str, last: str, count: int, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for number in range(2):
        write_tar(folder / f"{number}.tar", {"0.png": data_sets.png(), "0.txt": b"a"})
    assert texts(folder / last) == ["a"] * count


@pytest.mark.parametrize("name", ["x[1].tar", "{x}.tar", "{0..3}.tar", "a,{b,c}.tar"])
def test_a_file_whose_name_looks_like_a_pattern_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / name, {"0.png": data_sets.png(), "0.txt": b"a"})
    assert texts(tmp_path / name) == ["a"]


def test_braces_before_a_folder_with_braces_are_still_a_pattern(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "my {v2}").mkdir(parents=True)
        files = {"0.png": data_sets.png(), "0.txt": place.encode()}
        write_tar(tmp_path / place / "my {v2}" / "0.tar", files)
    assert texts(tmp_path / "{a,b}" / "my {v2}" / "*.tar") == ["a", "b"]
