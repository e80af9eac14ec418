"""The files of a report: `index.html`, `index-small.html`, `summary.json`, `scores.csv`, `scores.parquet`."""

import csv
import dataclasses
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.report.blocks import Report
from imprompt.report.page import render_small_page, render_whole_page
from imprompt.report.summary import collect_report_data, to_plain
from imprompt.runtime.environment import PACKAGES, describe_environment
from imprompt.runtime.output import make_folder, write_atomically

PAGE_FILE, SMALL_PAGE_FILE, SUMMARY_FILE = "index.html", "index-small.html", "summary.json"
SCORES_FILE, PARQUET_FILE = "scores.csv", "scores.parquet"

_PAGE_FACTS = ("command", "commit", "device", "imprompt", "torch", "diffusers", "transformers")
"""Facts of the environment that the page lists after the report's own facts."""


def write_report(report: Report, folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write the report's page, its small page and its summary to `folder`, and return the page's path.

    `index.html` holds everything. `index-small.html` has fewer than 600 kB, with smaller pictures.
    `summary.json` holds `summary`, versions, environment, and under "page" every number of the page.

    Args:
        report: the page; versions and environment are added to its facts
        folder: created if it does not exist
        summary: figures for programs, with "settings" and "seconds"; intervals are stored by name, and
            numbers that are not finite as null

    Raises:
        OutputError: the folder or a file in it cannot be written
    """
    make_folder(folder)
    facts = {name: fact for name, fact in describe_environment().items() if name in _PAGE_FACTS}
    report = dataclasses.replace(report, facts={**report.facts, **facts})
    write_summary({**summary, "page": collect_report_data(report)}, folder / SUMMARY_FILE)
    for name, text in ((SMALL_PAGE_FILE, render_small_page(report)), (PAGE_FILE, render_whole_page(report))):
        with write_atomically(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder / PAGE_FILE


def write_scores(rows: Sequence[Any], folder: Path) -> list[Path]:
    """Write rows of one dataclass as `scores.csv`, and as `scores.parquet` if pyarrow is installed.

    Returns:
        the files

    Raises:
        ValueError: no row
        OutputError: the folder or a file in it cannot be written
    """
    if not rows:
        raise ValueError("a table of scores needs a row")
    make_folder(folder)
    names = [field.name for field in dataclasses.fields(rows[0])]
    values = [{name: getattr(row, name) for name in names} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    with write_atomically(folder / SCORES_FILE) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
    return [folder / SCORES_FILE, *_write_parquet(values, folder / PARQUET_FILE)]


def _write_parquet(values: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Write the rows if pyarrow is installed; otherwise remove the file of an earlier run."""
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        path.unlink(missing_ok=True)
        return []
    with write_atomically(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(list(values)), part)
    return [path]


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write the summary as JSON, with the versions, the commit, the device and the command that made it."""
    facts = describe_environment()
    versions = {name: facts.pop(name) for name in PACKAGES if name in facts}
    with write_atomically(path) as part:
        text = json.dumps(
            to_plain({**summary, "versions": versions, "environment": facts}), indent=1, ensure_ascii=False
        )
        part.write_text(text + "\n", encoding="utf-8")


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as a PNG file."""
    with write_atomically(path) as part:
        picture.save(part, format="PNG", optimize=True)
