"""Raw data of every kind: the same samples in the same order, and what is said of data that is damaged."""

import json
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data_sets
from imprompt.errors import DataError, ImageError, MissingExtra
from imprompt.inputs.image import decode_image, load_image
from imprompt.training.config import Columns, DataSettings
from imprompt.training.samples import Part, Sample, Unreadable, open_source
from imprompt.training.samples.name_patterns import expand

KINDS = list(data_sets.WRITERS)
WHOLE_TABLES = ("JSON lines", "CSV")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = data_sets.WRITERS.items()
    return {kind: write(tmp_path_factory.mktemp(kind.replace(" ", ""))) for kind, write in made}


def read(source: str | Path, part_size: int = 2, **settings: Any) -> list[Sample | Unreadable]:
    parts = open_source(str(source), DataSettings(**settings), part_size)
    return [sample for part in parts for sample in part.samples()]


def good(samples: Sequence[Sample | Unreadable]) -> list[Sample]:
    assert not [sample for sample in samples if isinstance(sample, Unreadable)]
    return [sample for sample in samples if isinstance(sample, Sample)]


def reasons(samples: Sequence[Sample | Unreadable]) -> list[str]:
    return [sample.reason if isinstance(sample, Unreadable) else "" for sample in samples]


def columns(**names: str) -> Columns:
    return Columns(**names)


# All kinds alike


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_samples_in_the_same_order(
    kind: str, sources: dict[str, str]
) -> None:
    expected = good(read(sources["folder"]))
    assert [sample.text for sample in expected][:2] == ['picture 0, "a" – b', 'picture 1, "a" – b']
    assert [len(sample.references) for sample in expected] == [0, 0, 1, 0, 0]
    assert [sample.key for sample in good(read(sources[kind]))] == [sample.key for sample in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_any_size_cover_the_source_in_order(kind: str, sources: dict[str, str]) -> None:
    expected = [sample.key for sample in good(read(sources[kind], 100))]
    for size in (1, 2, 3, 4, 5, 6):
        parts = open_source(sources[kind], DataSettings(), size)
        assert all(isinstance(part, Part) and 1 <= len(part) <= size for part in parts)
        samples = [list(part.samples()) for part in parts]
        assert [len(some) for some in samples] == [len(part) for part in parts]
        assert [sample.key for some in samples for sample in good(some)] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_parts_can_be_sent_to_another_process_and_are_small(kind: str, sources: dict[str, str]) -> None:
    for part in open_source(sources[kind], DataSettings(), 2):
        sent = pickle.dumps(part)
        assert len(sent) < 2000
        assert [s.key for s in good(list(pickle.loads(sent).samples()))] == [
            s.key for s in good(list(part.samples()))
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_named_apart_and_alike_when_opened_again(kind: str, sources: dict[str, str]) -> None:
    one, other = ([part.identity for part in open_source(sources[kind], DataSettings(), 2)] for _ in range(2))
    assert one == other
    assert len(set(one)) == len(one)


@pytest.mark.parametrize("kind", ["folder", "official", *WHOLE_TABLES])
def test_a_changed_picture_changes_the_identity_of_its_part_only(kind: str, tmp_path: Path) -> None:
    source = data_sets.WRITERS[kind](tmp_path)
    before = [part.identity for part in open_source(source, DataSettings(), 2)]
    (tmp_path / "000003.png").write_bytes(data_sets.png(seed=77))
    after = [part.identity for part in open_source(source, DataSettings(), 2)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_does_not_depend_on_where_the_data_lies(
    kind: str, tmp_path: Path, sources: dict[str, str]
) -> None:
    folder = Path(sources[kind].removeprefix("hf:"))
    while not folder.is_dir() or folder.name == "saved":
        folder = folder.parent
    folder.rename(tmp_path / "moved")
    moved = sources[kind].replace(str(folder), str(tmp_path / "moved"))
    try:
        there = [part.identity for part in open_source(moved, DataSettings(), 2)]
    finally:
        (tmp_path / "moved").rename(folder)
    assert there == [part.identity for part in open_source(sources[kind], DataSettings(), 2)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("folder", "WebDataset")])
def test_an_unknown_column_is_an_error_that_names_those_there_are(kind: str, sources: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"has no column 'caption', .*columns\.text.*reference, text"):
        read(sources[kind], columns=columns(text="caption"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["reference", "mask", "face"])
def test_a_column_asked_for_by_name_must_be_there(kind: str, field: str, sources: dict[str, str]) -> None:
    with pytest.raises(DataError, match=f"other.*data.columns.{field} asks for"):
        read(sources[kind], columns=columns(**{field: "other"}))


@pytest.mark.parametrize("kind", KINDS)
def test_data_without_captions_says_so(kind: str, sources: dict[str, str]) -> None:
    samples = good(read(sources[kind], columns=columns(text="")))
    assert [sample.text for sample in samples] == [""] * 5


@pytest.mark.parametrize("source", ["", "nowhere", "no/*.tar", "a/{0..3}.tar", "hf:no/such"])
def test_a_source_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(DataError, match="is empty" if not source else "no|hf:no/such"):
        read(source)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no pictures"):
        read(tmp_path)


def test_a_file_of_another_kind_is_an_error_that_names_the_known(tmp_path: Path) -> None:
    (tmp_path / "data.xls").write_text("")
    with pytest.raises(DataError, match=r"'\.xls' are not known; known are \.json, \.jsonl, \.csv"):
        read(tmp_path / "data.xls")


# Folders


def test_a_folder_is_read_in_the_order_of_the_paths_with_folders_below(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b/c.png", ".hidden/x.png", "a.png", "a/.y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data_sets.png())
        (tmp_path / name).with_suffix(".txt").write_text(name)
    assert [sample.text for sample in good(read(tmp_path))] == ["a.png", "a/b/c.png", "a/z.JPG", "b.png"]


def test_a_folder_gives_several_references_a_mask_and_a_face(tmp_path: Path) -> None:
    (tmp_path / "my.cat.png").write_bytes(data_sets.png())
    (tmp_path / "my.cat.txt").write_text("\ufeffa cat\n", encoding="utf-8")
    for seed in (1, 2):
        (tmp_path / f"my.cat.reference.{seed}.png").write_bytes(data_sets.png(seed=seed))
    (tmp_path / "my.cat.mask.png").write_bytes(data_sets.png(seed=3))
    np.save(tmp_path / "my.cat.face.npy", np.arange(512.0))
    (sample,) = good(read(tmp_path))
    assert sample.text == "a cat"
    assert sample.references == (data_sets.png(seed=1), data_sets.png(seed=2))
    assert sample.mask == data_sets.png(seed=3)
    assert sample.face is not None
    assert np.array_equal(sample.face, np.arange(512, dtype=np.float32))


def test_a_picture_without_a_caption_is_skipped_and_named(tmp_path: Path) -> None:
    data_sets.write_folder(tmp_path)
    (tmp_path / "000001.txt").unlink()
    faulty = read(tmp_path)[1]
    assert faulty == Unreadable(str(tmp_path / "000001.png"), "it has no caption: there is no 000001.txt")


def test_a_caption_that_is_no_text_is_skipped_and_named(tmp_path: Path) -> None:
    data_sets.write_folder(tmp_path)
    (tmp_path / "000001.txt").write_bytes(b"\xff\xfe\x00")
    assert reasons(read(tmp_path)) == ["", "its caption is not UTF-8", "", "", ""]


def test_a_reference_without_its_picture_is_an_error(tmp_path: Path) -> None:
    data_sets.write_folder(tmp_path)
    (tmp_path / "000002.png").unlink()
    with pytest.raises(DataError, match=r"000002\.reference\.png belongs to no picture"):
        read(tmp_path)


@pytest.mark.parametrize("kind", WHOLE_TABLES)
def test_a_table_named_metadata_speaks_for_its_folder(kind: str, tmp_path: Path) -> None:
    table = Path(data_sets.WRITERS[kind](tmp_path))
    expected = [sample.key for sample in good(read(table))]
    table.rename(table.with_stem("metadata"))
    assert [sample.key for sample in good(read(tmp_path))] == expected


# Tables


@pytest.mark.parametrize("kind", ["official", *WHOLE_TABLES])
def test_a_missing_picture_is_skipped_and_named_in_its_place(kind: str, tmp_path: Path) -> None:
    source = Path(data_sets.WRITERS[kind](tmp_path))
    (tmp_path / "000001.png").unlink()
    assert read(source)[1] == Unreadable(f"{source.name} row 2", "no such file: 000001.png")


def test_relative_names_begin_at_the_root(tmp_path: Path) -> None:
    source = Path(data_sets.write_official(tmp_path / "pictures"))
    moved = source.rename(tmp_path / "list.json")
    assert len(good(read(moved, root=str(tmp_path / "pictures")))) == 5


def test_a_line_that_is_no_json_is_skipped_and_named(tmp_path: Path) -> None:
    source = Path(data_sets.write_json_lines(tmp_path))
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:1], "{", "", "[]", '{"text": "a"}', '{"image": "000000.png"}']))
    assert reasons(read(source)) == [
        "",
        "it is no JSON",
        "it is no JSON object",
        "it has 0 pictures in the column 'image', not one",
        "it has no caption in the column 'text'",
    ]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "[1]"], ids=["empty", "cut off", "nothing", "no list", "no objects"]
)
def test_a_json_file_that_is_no_list_of_objects_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match=r"data\.json (is no JSON|must be a list of objects)"):
        read(tmp_path / "data.json")


words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=30)
@given(captions=st.lists(words, min_size=1, max_size=9), size=st.integers(1, 4))
@pytest.mark.parametrize("kind", WHOLE_TABLES)
def test_captions_with_quotes_and_line_breaks_survive_a_table(
    kind: str, captions: list[str], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("words")
    (folder / "a.png").write_bytes(b"picture")
    rows = [{"image": "a.png", "text": text} for text in captions]
    write_table(kind, folder, rows)
    samples = good(read(next(folder.glob("data.*")), size))
    assert [sample.text for sample in samples] == [text.strip() for text in captions]


def write_table(kind: str, folder: Path, rows: list[dict[str, str]]) -> None:
    if kind == "JSON lines":
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    quoted = ['"' + '","'.join(cell.replace('"', '""') for cell in row.values()) + '"\n' for row in rows]
    (folder / "data.csv").write_bytes(("image,text\n" + "".join(quoted)).encode())


def test_rows_of_a_csv_that_are_damaged_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfimage,text\na.png,b\na.png\n\na.png,\xff\na.png,c\n")
    assert reasons(read(tmp_path / "data.csv")) == [
        "",
        "it has 1 cells, and the table has 2 columns",
        "it is not UTF-8",
        "",
    ]


def test_several_references_and_a_face_may_stand_in_a_cell_of_a_csv(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "data.csv").write_text(
        'image,text,reference,face\na.png,d,"[""b.png"", ""c.png""]","[0.5, 1]"\na.png,d,b.png,\n'
    )
    one, other = good(read(tmp_path / "data.csv"))
    assert one.references == (b"b", b"c")
    assert one.face is not None
    assert one.face.tolist() == [0.5, 1]
    assert (other.references, other.face) == ((b"b",), None)


@pytest.mark.parametrize("form", ["bytes", "names", "lists"])
def test_pictures_in_parquet_may_be_bytes_or_names_or_lists(form: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.png").write_bytes(b"picture")
    cell = {"bytes": b"picture", "names": "a.png", "lists": ["a.png"]}[form]
    table = {"picture": [cell] * 4, "text": ["a"] * 4, "face": [[0.0, 1.0]] * 4}
    parquet.write_table(pyarrow.table(table), tmp_path / "data.parquet")
    samples = good(read(tmp_path / "data.parquet", columns=columns(image="picture")))
    assert [sample.image for sample in samples] == [b"picture"] * 4
    assert samples[0].face is not None


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"data\.parquet is no Parquet file, or is damaged"):
        read(tmp_path / "data.parquet")


@pytest.mark.parametrize(("package", "source"), [("pyarrow", "data.parquet"), ("datasets", "hf:a/b")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs {package}.*imprompt\["):
        read(source)


def test_a_split_that_is_not_there_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list([{"image": {"bytes": b"a", "path": None}, "text": "b"}])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "both"))
    assert len(good(read(f"hf:{tmp_path / 'both'}:test"))) == 1
    with pytest.raises(DataError, match="no split 'valid'; its splits are: train, test"):
        read(f"hf:{tmp_path / 'both'}:valid")


# Tar files


@pytest.fixture
def tar(tmp_path: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        yield tar


def test_samples_that_could_not_be_fetched_are_none(tar: tarfile.TarFile, tmp_path: Path) -> None:
    data_sets.add_member(tar, "0.json", b'{"status": "failed_to_download"}')
    data_sets.add_member(tar, "1.jpg", b"picture")
    data_sets.add_member(tar, "1.json", b'{"status": "success", "caption": " a cat "}')
    data_sets.add_member(tar, "2.json", b'{"status": "success"}')
    data_sets.add_member(tar, "3.txt", b"a")
    data_sets.add_member(tar, "4.webp", b"picture")
    tar.close()
    samples = read(tmp_path / "0.tar")
    assert reasons(samples) == [
        "",
        "it has no picture",
        "it has no picture",
        "it has no caption: there is no .txt",
    ]
    assert [sample.name for sample in samples] == ["0.tar:1", "0.tar:2", "0.tar:3", "0.tar:4"]
    assert isinstance(samples[0], Sample)
    assert samples[0].text == "a cat"


def test_files_of_other_suffixes_are_found_by_their_columns(tar: tarfile.TarFile, tmp_path: Path) -> None:
    names = {"a/0.jpg": "no", "a/0.large.png": "image", "a/0.cap": "text", "a/0.other.1.png": "reference"}
    for name, content in names.items():
        data_sets.add_member(tar, name, content.encode())
    tar.close()
    asked = columns(image="large.png", text="cap", reference="other")
    (sample,) = good(read(tmp_path / "0.tar", columns=asked))
    assert (sample.name, sample.image, sample.text) == ("0.tar:a/0", b"image", "text")
    assert sample.references == (b"reference",)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_the_standard_library_reads_them(form: int, tmp_path: Path) -> None:
    from imprompt.training.samples.tar_headers import read_headers

    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        names = ["a.png", "ü/b.txt", f"{'d' * 90}/{'n' * 95}.png", "empty.txt"]
        if form != tarfile.USTAR_FORMAT:
            names.append("x" * 300 + ".png")
        for name in names:
            data_sets.add_member(tar, name, name.encode() * 40 if name != "empty.txt" else b"")
        tar.add(tmp_path, "folder", recursive=False)
        data_sets.add_member(tar, "last.png", b"last")
    with tarfile.open(tmp_path / "0.tar") as tar, (tmp_path / "0.tar").open("rb") as file:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isreg()]
        found = [(m.name, m.offset, m.size) for m in read_headers(file)]
    assert found == [(name, offset, size) for name, _, offset, size in expected]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.62, 0.9])
def test_a_tar_file_that_is_cut_off_is_named_with_all_others(share: float, tmp_path: Path) -> None:
    data_sets.write_tars(tmp_path)
    for name in ("00000.tar", "00001.tar"):
        whole = (tmp_path / name).read_bytes().rstrip(b"\0")
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"00000\.tar (ends in|is cut|is empty).*00001\.tar .*fetch again"):
        read(tmp_path / "*.tar")


def test_a_tar_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(DataError, match=r"0\.tar is no tar file, or is damaged at byte 0"):
        read(tmp_path / "0.tar")


def test_a_tar_file_is_read_a_sample_at_a_time(tar: tarfile.TarFile, tmp_path: Path) -> None:
    import tracemalloc

    for number in range(20):
        data_sets.add_member(tar, f"{number}.png", bytes(1_000_000))
        data_sets.add_member(tar, f"{number}.txt", b"a")
    tar.close()
    tracemalloc.start()
    count = sum(1 for part in open_source(str(tmp_path), DataSettings(), 7) for _ in part.samples())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20
    assert peak < 4_000_000


def test_braces_stand_for_every_name() -> None:
    assert list(expand("s/{098..101}.tar")) == ["s/098.tar", "s/099.tar", "s/100.tar", "s/101.tar"]
    assert list(expand("{a,b}/{0..1}.csv")) == ["a/0.csv", "a/1.csv", "b/0.csv", "b/1.csv"]


# Faces


def test_a_face_embedding_may_be_what_the_official_script_reads(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    values = np.arange(512, dtype=np.float32)
    torch.save(values, tmp_path / "array.bin")
    torch.save(torch.from_numpy(values)[None], tmp_path / "tensor.pt")
    names = ("array.bin", "tensor.pt")
    rows = [{"image_file": "a.png", "text": "a", "id_embed_file": name} for name in names]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    for sample in good(read(tmp_path / "data.json")):
        assert sample.face is not None
        assert np.array_equal(sample.face, values)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle ran",))


@pytest.mark.parametrize(
    ("face", "reason"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], "has the shape (2, 2)"),
        ([], ""),
        (["a"], "is no list of numbers"),
        ([float("nan")], "not finite"),
        ("harmful.bin", "neither a .npy file"),
        ("none.npy", "no such file"),
    ],
)
def test_a_wrong_face_embedding_is_skipped_and_named(face: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    torch.save(Harmful(), tmp_path / "harmful.bin")
    (tmp_path / "data.json").write_text(json.dumps([{"image": "a.png", "text": "a", "face": face}]))
    (found,) = reasons(read(tmp_path / "data.json"))
    assert reason in found
    assert bool(reason) == bool(found) or face == []


# Pictures


@settings(max_examples=30)
@given(seed=st.integers(0, 5), width=st.integers(1, 40))
def test_an_encoded_picture_is_decoded_as_a_file_is(
    seed: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = data_sets.png(seed=seed, width=width)
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(data)
    assert decode_image(data, "a").tobytes() == load_image(path).tobytes()


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"", "is empty"), (b"text" * 9, "is not a picture"), (data_sets.png()[:300], "truncated or damaged")],
)
def test_a_damaged_picture_is_named(data: bytes, fault: str) -> None:
    with pytest.raises(ImageError, match=f"row 7.*{fault}"):
        decode_image(data, "row 7")
