"""Reports: pages that hold all they show, summaries that hold every number, scores as tables."""

import csv
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imprompt.errors import OutputError
from imprompt.report import (
    Chart,
    Column,
    Grid,
    Interval,
    KeyFigure,
    Line,
    PictureRow,
    Report,
    Section,
    Table,
    pick_best_median_worst,
    to_plain,
    write_report,
    write_scores,
)
from imprompt.report.pictures import join_pictures
from page_reading import HOSTILE, read_page


@dataclass(frozen=True)
class Score:
    concept: str
    seed: int
    similarity: float
    is_twin: bool


def noise(*shape: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def report_of(*, rows: int = 3, size: int = 16, name: str = "cat") -> Report:
    table = Table(
        ["", Column("similarity"), Column("first", percent=True), "pictures", "note"],
        [
            [name, Interval(0.4671, 0.4132, 0.5183), Interval(0.155, 0.118, 0.192), 828, "a word"],
            ["λ = 0", -0.0034, 0.01375, 207, None],
            ["λ = 1", Interval(0.748, 0.713, 0.781), Interval(0.75, 0.72, 0.78), 207, ""],
        ],
        strong=[0],
    )
    line = Line(
        "",
        [(0.1, 0.9), (0.62, 0.315)],
        intervals=[(0.8, 0.95), (0.2, 0.4)],
        x_intervals=[(0.0, 0.2), (0.5, 0.7)],
        names=["0", "1"],
    )
    curve = Chart(
        f"Both of {name}",
        "λ beside each point.",
        [line],
        x_label="reference",
        y_label="text",
        is_scatter=True,
    )
    grid = Grid(
        ["reference", f"{name} 1"],
        [PictureRow([noise(size, size, seed=k), noise(size, size)], f"{name} {k}") for k in range(rows)],
    )
    sections = [Section("Scores", f"All of {name}.", [table, curve]), Section("Pictures", "", [grid])]
    tiles = [
        KeyFigure(Interval(0.4671, 0.4132, 0.5183), "gap", "0.748 at best"),
        KeyFigure(0.155, "first", percent=True),
    ]
    return Report(
        name, f"{name} is followed.", sections, {"concepts": 207, "guidance_scale": 7.5}, name, tiles
    )


def numbers(value: Any) -> Iterator[float]:
    """Every number in a summary, those inside its words, too."""
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, str):
        yield from (float(number) for number in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


# Pages


@pytest.mark.parametrize("name", ["index.html", "index-small.html"])
def test_a_page_loads_nothing_from_outside_itself_whatever_things_are_called(
    tmp_path: Path, name: str
) -> None:
    write_report(report_of(name=HOSTILE), tmp_path, {})
    page = read_page(tmp_path / name)
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert page.tags.count("script") == 1
    assert HOSTILE in page.said


def test_every_number_on_the_page_is_in_the_summary(tmp_path: Path) -> None:
    write_report(report_of(), tmp_path, {"seconds": 1.5})
    known = set(numbers(json.loads((tmp_path / "summary.json").read_text())))
    shown = [word for words in read_page(tmp_path / "index.html").said for word in _in_tables(words)]
    assert len(shown) > 30
    unknown = [word for word in shown if not any(_is_rounded(word, value) for value in known)]
    assert not unknown


def _in_tables(words: str) -> list[str]:
    return re.findall(r"−?\d[\d,]*(?:\.\d+)?", words)


def _is_rounded(word: str, value: float) -> bool:
    digits = len(word.partition(".")[2])
    number = float(word.replace(",", "").replace("−", "-"))
    return any(abs(number - part) <= 0.51 * 10**-digits for part in (value, 100 * value, -value))


@pytest.mark.parametrize("rows", [2, 70])
def test_a_small_page_is_small_whatever_the_pictures(tmp_path: Path, rows: int) -> None:
    write_report(report_of(rows=rows, size=48), tmp_path, {})
    assert (tmp_path / "index-small.html").stat().st_size < 600_000
    small, whole = read_page(tmp_path / "index-small.html"), read_page(tmp_path / "index.html")
    assert len(whole.sources) == rows
    assert len(small.sources) >= min(rows, 48)
    assert ("rows are here" in small.words) == (len(small.sources) < rows)


def test_a_summary_says_what_made_it_and_holds_what_json_cannot(tmp_path: Path) -> None:
    summary = {"gap": Interval(0.5, 0.25, math.inf), "seconds": 2.5, "settings": {"path": Path("a/b")}}
    path = write_report(Report("Nothing", "Nothing was measured.", []), tmp_path / "new" / "folder", summary)
    stored = json.loads((path.parent / "summary.json").read_text())
    assert path.name == "index.html"
    assert stored["gap"] == {"mean": 0.5, "low": 0.25, "high": None}
    assert stored["settings"] == {"path": "a/b"}
    assert {"imprompt", "torch", "diffusers"} <= set(stored["versions"])
    assert "command" in stored["environment"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        write_report(report_of(), tmp_path / "file" / "report", {})
    with pytest.raises(OutputError, match="cannot be made"):
        write_scores([Score("cat", 0, 0.5, False)], tmp_path / "file" / "report")


@pytest.mark.parametrize("rows", [[["a"]], [["a", 1.0, 2.0]]])
def test_a_row_that_does_not_fit_its_headings_is_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="under"):
        Table(["", "gap"], rows)
    with pytest.raises(ValueError, match="under"):
        Grid(["a", "b"], [PictureRow([noise(4, 4)])])


def test_pictures_keep_their_shape_in_a_row() -> None:
    row = np.asarray(join_pictures([Image.new("RGB", (64, 64), "navy"), Image.new("RGB", (300, 150), "red")]))
    assert row.shape == (256, 512, 3)
    assert (row[:, :256] == (0, 0, 128)).all()
    assert (row[64:192, 256:] == (255, 0, 0)).all()
    assert (row[:63, 256:] == 255).all()


# Scores


def test_parquet_and_csv_hold_the_same_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = [Score("cat, “big”", 0, 0.1 + 0.2, True), Score("dog\n", 1, -1e-9, False)]
    written = write_scores(rows, tmp_path)
    assert [path.name for path in written] == ["scores.csv", "scores.parquet"]
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [Score(**line) for line in table] == rows
    assert [{key: str(value) for key, value in line.items()} for line in table] == lines


def test_without_pyarrow_there_is_csv_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scores.parquet").write_text("of an earlier run")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert [path.name for path in write_scores([Score("cat", 0, 0.5, False)], tmp_path)] == ["scores.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


@given(
    scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=60),
    count=st.integers(1, 8),
)
def test_best_median_and_worst_are_what_they_are_called(scores: Sequence[float], count: int) -> None:
    places = pick_best_median_worst(scores, count)
    assert len(places) == len(set(places)) == min(len(scores), 3 * count)
    chosen = [scores[place] for place in places]
    assert chosen == sorted(chosen, reverse=True)
    ordered = sorted(scores, reverse=True)
    if len(scores) > 3 * count:
        assert chosen[:count] == ordered[:count]
        assert chosen[-count:] == ordered[-count:]
        assert min(ordered[count:-count]) <= chosen[count] <= max(ordered[count:-count])


def test_the_middle_one_is_the_median() -> None:
    assert pick_best_median_worst([5.0, 1.0, 4.0, 2.0, 3.0]) == [0, 4, 1]
    with pytest.raises(ValueError, match="not numbers"):
        pick_best_median_worst([1.0, math.nan])


# Numbers


@pytest.mark.parametrize(
    ("interval", "sign", "percent"),
    [
        (Interval(0.25, 0.125, 0.375), 1, "25 % [12, 38]"),
        (Interval(-0.25, -0.375, -0.125), -1, "-25 % [-38, -12]"),
        (Interval(0.0, -0.125, 0.125), 0, "0 % [-12, 12]"),
    ],
)
def test_an_interval_has_the_sign_of_a_difference_that_it_excludes_zero_from(
    interval: Interval, sign: int, percent: str
) -> None:
    assert (interval.sign, interval.percent) == (sign, percent)


def test_results_are_written_under_the_names_that_they_choose() -> None:
    @dataclass(frozen=True)
    class Figures:
        retrieval_1: Interval

        def to_json(self) -> dict[str, Any]:
            return {"retrieval@1": self.retrieval_1}

    @dataclass(frozen=True)
    class Result:
        judges: dict[str, Figures]

    interval = Interval(0.5, 0.25, math.nan)
    expected = {"judges": {"CLIP": {"retrieval@1": {"mean": 0.5, "low": 0.25, "high": None}}}}
    assert to_plain(Result({"CLIP": Figures(interval)})) == expected
