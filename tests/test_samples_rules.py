"""Rules that hold in every kind of data: hidden files, samples not fetched, suffixes, literal paths."""

import csv
import gzip
import itertools
import json
import pickle
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


# Captions by default


@pytest.mark.parametrize("store", [write_files, lambda folder, files: write_tar(folder / "0.tar", files)])
@pytest.mark.parametrize(
    ("beside", "text"),
    [
        ({"txt": b"a"}, "a"),
        ({"caption": b"b"}, "b"),
        ({"TXT": b"a"}, "a"),
        ({"CAPTION": b"b"}, "b"),
        ({"caption": b"b", "txt": b"a"}, "a"),
        ({"caption": b"b", "TXT": b"a"}, "a"),
        ({"txt": b"a", "TXT": b"c"}, "a"),
        ({"tags": b"d"}, "unreadable: it has no caption: there is no "),
        ({}, "unreadable: it has no caption: there is no "),
    ],
)
def test_the_caption_is_the_txt_or_else_the_caption_file_in_folders_and_tars(
    beside: dict[str, bytes], text: str, store: Callable[..., Path], tmp_path: Path
) -> None:
    files = {"cat.png": data_sets.png(), **{f"cat.{word}": content for word, content in beside.items()}}
    (found,) = texts(store(tmp_path, files))
    assert found.startswith(text)
    assert (found == text) == (len(text) == 1)
    assert texts(store(tmp_path, files), columns=Columns(text="")) == [""]


@pytest.mark.parametrize("suffix", ["avif", "AVIF", "heic", "HEIF", "JPG"])
@pytest.mark.parametrize("store", [write_files, lambda folder, files: write_tar(folder / "0.tar", files)])
def test_pictures_are_known_by_their_suffix_in_any_spelling(
    store: Callable[..., Path], suffix: str, tmp_path: Path
) -> None:
    files = {f"cat.{suffix}": b"picture", "cat.txt": b"a"}
    (sample,) = read(store(tmp_path, files))
    assert isinstance(sample, Sample)
    assert (sample.image, sample.text) == (b"picture", "a")


# Kohya's metadata


def metadata(folder: Path, entries: Any) -> Path:
    (folder / "meta_cap.json").write_text(json.dumps(entries))
    return folder / "meta_cap.json"


def test_kohyas_metadata_names_pictures_by_path_or_without_suffix(tmp_path: Path) -> None:
    names = ("cat.png", "in/dog.JPG", "a.b.webp", "out.png")
    write_files(tmp_path, {name: name.encode() for name in names})
    keys = ("cat", "in/dog", "a.b", str(tmp_path / "out.png"))
    found = read(metadata(tmp_path, {key: {"caption": key, "train_resolution": [64, 64]} for key in keys}))
    pairs = [(one.image.decode(), one.text) for one in found if isinstance(one, Sample)]
    assert pairs == list(zip(names, keys, strict=True))


@pytest.mark.parametrize(
    ("entry", "both", "caption", "tags"),
    [
        ({"caption": "a cat", "tags": "cat, 1"}, "a cat, cat, 1", "a cat", "cat, 1"),
        ({"caption": "a cat"}, "a cat", "a cat", None),
        ({"tags": "cat"}, "cat", None, "cat"),
        ({"caption": "a cat", "tags": ""}, "a cat", "a cat", ""),
    ],
)
def test_the_text_of_kohyas_metadata_is_the_caption_with_its_tags_behind(
    entry: dict[str, str], both: str, caption: str | None, tags: str | None, tmp_path: Path
) -> None:
    write_files(tmp_path, {"a.png": b"a", "b.png": b"b"})
    path = metadata(tmp_path, {"a": entry, "b": {"caption": "x", "tags": "y"}})
    assert texts(path) == [both, "x, y"]
    for word, expected, other in (("caption", caption, "x"), ("tags", tags, "y")):
        said = f"unreadable: it has no caption in the column {word!r}" if expected is None else expected
        assert texts(path, columns=Columns(text=word)) == [said, other]


def test_what_kohyas_metadata_does_not_tell_is_no_sample(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": b"a", "two.png": b"a", "two.jpg": b"a"})
    entries = {"a": {"caption": "x"}, "gone": {"caption": "x"}, "two": {"caption": "x"}, "a.png": {}}
    assert texts(metadata(tmp_path, entries)) == [
        "x",
        "unreadable: no such file: gone",
        "unreadable: it has 2 pictures in the column 'image', not one",
        "unreadable: it has no caption in the column 'text'",
    ]


def test_kohyas_pictures_lie_in_the_root_that_is_named(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", {"a.png": b"a"})
    path = metadata(tmp_path, {"a": {"caption": "x"}})
    assert texts(path, root=str(tmp_path / "photos")) == ["x"]


@pytest.mark.parametrize(
    "entries", [{"image": "cat.png", "text": "a"}, {"a": []}, {"a": "a cat"}, {"a": None}]
)
def test_a_json_object_that_is_no_metadata_is_answered_with_both_forms(entries: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be an object like .*\"caption\".*or write a list of objects"):
        read(metadata(tmp_path, entries))


# Tables with tabs


def test_a_tsv_is_a_csv_with_tabs(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{number}.png": b"p" for number in range(4)})
    captions = ["a cat, sitting", 'says "hi"', "two\nlines", "a\ttab"]
    for suffix, dialect in (("csv", "excel"), ("tsv", "excel-tab"), ("TSV", "excel-tab")):
        with (tmp_path / f"data.{suffix}").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, dialect)
            table.writerow(["image", "text"])
            table.writerows([f"{number}.png", text] for number, text in enumerate(captions))
        assert texts(tmp_path / f"data.{suffix}") == captions


def test_a_tsv_without_quoting_whose_quotes_would_eat_a_line_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"0.png": b"p", "data.tsv": b'image\ttext\n0.png\t"a" cat\n0.png\tb\n'})
    with pytest.raises(DataError, match="is no TSV whose cells are in CSV's quotes or in none"):
        texts(tmp_path / "data.tsv")
    (tmp_path / "data.tsv").write_text('image\ttext\n0.png\ta "big" cat\n')
    assert texts(tmp_path / "data.tsv") == ['a "big" cat']


# Tar files that are packed


def pack_tar(path: Path, count: int = 5) -> Path:
    files: dict[str, bytes] = {}
    for number in range(count):
        files[f"{number}.png"] = data_sets.png(seed=number)
        files[f"{number}.txt"] = f"thing {number}".encode()
    path.write_bytes(gzip.compress(write_tar(path.with_name("plain"), files).read_bytes()))
    return path


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.TGZ", "0.TAR"])
@pytest.mark.parametrize("part_size", [1, 2, 5])
def test_a_packed_tar_has_the_samples_of_the_tar(name: str, part_size: int, tmp_path: Path) -> None:
    path = pack_tar(tmp_path / name)
    if name == "0.TAR":
        path.write_bytes((tmp_path / "plain").read_bytes())
    (tmp_path / "plain").rename(tmp_path / "1.tar")
    both = [
        [
            pickle.loads(pickle.dumps(part))
            for part in open_source(str(tmp_path / one), DataSettings(), part_size)
        ]
        for one in ("1.tar", name)
    ]
    plain, found = ([list(part.samples()) for part in parts] for parts in both)
    assert len(plain) == len(found)
    for one, other in zip(itertools.chain(*plain), itertools.chain(*found), strict=True):
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        assert one.key == other.key
    assert len(texts(tmp_path)) == len(texts(f"{tmp_path}/{{1.tar,{name}}}")) == 10


def test_parts_of_one_packed_tar_are_read_side_by_side(tmp_path: Path) -> None:
    parts = open_source(str(pack_tar(tmp_path / "0.tar.gz", 6)), DataSettings(), 3)
    pairs = list(zip(*(part.samples() for part in parts), strict=True))
    found = [[sample.text for sample in pair if isinstance(sample, Sample)] for pair in pairs]
    assert found == [["thing 0", "thing 3"], ["thing 1", "thing 4"], ["thing 2", "thing 5"]]


@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped", "no tar"])
def test_a_damaged_packed_tar_is_named(damage: str, tmp_path: Path) -> None:
    path = pack_tar(tmp_path / "0.tar.gz")
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:middle],
            "no gzip": b"<html>" * 1000,
            "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
            "no tar": gzip.compress(b"<html>" * 1000),
        }[damage]
    )
    with pytest.raises(DataError, match=r"0\.tar\.gz is (not what gzip packs|no tar file).*fetch again"):
        read(path)


def test_a_tar_that_unpacks_to_much_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprompt.training.samples.gzip_tars.MIN_UNPACKED_BYTES", 100_000)
    (tmp_path / "0.tgz").write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(
        DataError, match=r"0\.tgz unpacks to more than 100,000 bytes; .* unpack it \(gunzip\)"
    ):
        read(tmp_path / "0.tgz")
