"""The same few samples as every kind of training data: what several test files read."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny


def png(*, seed: int = 0, width: int = 37, height: int = 31) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed=seed, width=width, height=height).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, count: int = 5) -> list[dict[str, Any]]:
    """Pictures of several shapes, the third with a reference; returns rows of a table that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        name = f"{number:06d}"
        (folder / f"{name}.png").write_bytes(png(seed=number, width=32 + 9 * (number % 3)))
        rows.append({"image": f"{name}.png", "text": f'picture {number}, "a" – b', "reference": None})
    (folder / "000002.reference.png").write_bytes(png(seed=90))
    rows[2]["reference"] = "000002.reference.png"
    return rows


def write_folder(folder: Path, count: int = 5) -> str:
    for row in write_pictures(folder, count):
        (folder / row["image"]).with_suffix(".txt").write_text(row["text"] + "\n", encoding="utf-8")
    return str(folder)


def write_official(folder: Path, count: int = 5) -> str:
    rows = [{"image_file": row.pop("image"), **row} for row in write_pictures(folder, count)]
    (folder / "data.json").write_text(json.dumps(rows))
    return str(folder / "data.json")


def write_json_lines(folder: Path, count: int = 5) -> str:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in write_pictures(folder, count)]
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder / "data.jsonl")


def write_csv(folder: Path, count: int = 5) -> str:
    rows = write_pictures(folder, count)
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return str(folder / "data.csv")


def write_parquet(folder: Path, count: int = 5) -> str:
    """Pictures are in the table, as Hugging Face writes them; a row group is three rows."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(with_bytes(folder, write_pictures(folder, count)))
    parquet.write_table(table, folder / "data.parquet", row_group_size=3)
    return str(folder / "data.parquet")


def write_hub(folder: Path, count: int = 5) -> str:
    import datasets

    rows = with_bytes(folder, write_pictures(folder / "pictures", count), "pictures")
    data = datasets.Dataset.from_list(rows)
    data.cast_column("image", datasets.Image()).save_to_disk(str(folder / "saved"))
    return f"hf:{folder / 'saved'}"


def with_bytes(folder: Path, rows: Sequence[dict[str, Any]], inner: str = "") -> list[dict[str, Any]]:
    def cell(name: str | None) -> dict[str, Any] | None:
        return {"bytes": (folder / inner / name).read_bytes(), "path": name} if name else None

    return [{**row, "image": cell(row["image"]), "reference": cell(row["reference"])} for row in rows]


def write_tars(folder: Path, count: int = 5) -> str:
    """Two tar files as img2dataset writes them."""
    rows = write_pictures(folder / "pictures", count)
    for shard, some in enumerate((rows[:3], rows[3:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in some:
                key = row["image"].removesuffix(".png")
                add_member(tar, f"{key}.png", (folder / "pictures" / row["image"]).read_bytes())
                add_member(tar, f"{key}.txt", row["text"].encode())
                add_member(tar, f"{key}.json", json.dumps({"status": "success"}).encode())
                if row["reference"]:
                    reference = (folder / "pictures" / row["reference"]).read_bytes()
                    add_member(tar, f"{key}.reference.png", reference)
    return str(folder / "{00000..00001}.tar")


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """With a time in fractions of a second, which needs a pax header: so WebDataset writes it."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), 1234567890.25  # pyright: ignore[reportAttributeAccessIssue]
    tar.addfile(member, io.BytesIO(content))


WRITERS: dict[str, Callable[..., str]] = {
    "folder": write_folder,
    "official": write_official,
    "JSON lines": write_json_lines,
    "CSV": write_csv,
    "Parquet": write_parquet,
    "Hugging Face": write_hub,
    "WebDataset": write_tars,
}
"""Kind of data → a function (folder, count) that writes it and returns the `data.source` for it."""
