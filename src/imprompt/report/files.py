"""A report's files: `index.html`, `index-small.html`, `summary.json`, `scores.csv`, `scores.parquet`."""

import csv
import dataclasses
import importlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.errors import OutputError
from imprompt.report.blocks import Report
from imprompt.report.data import report_data
from imprompt.report.html import small_page, whole_page
from imprompt.report.interval import Interval
from imprompt.runtime.environment import describe_environment
from imprompt.runtime.output import write_atomically

PAGE_FILE, SMALL_PAGE_FILE, SUMMARY_FILE = "index.html", "index-small.html", "summary.json"
SCORES_FILE, PARQUET_FILE = "scores.csv", "scores.parquet"

_PACKAGES = ("imprompt", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
_SHOWN = ("command", "commit", "device", "imprompt", "torch", "diffusers", "transformers")
"""What the page says of where it was made, after the report's own facts."""


def write_report(report: Report, folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write the report's page, its small page and its summary to `folder`, and return the page's path.

    `index.html` holds everything; `index-small.html` has fewer than 600 kB, with pictures as small as that
    takes; `summary.json` has `summary`, what it was made with and on, and under "page" every number that the
    page shows.

    Args:
        report: what the pages show; what it was made with and on is added to its facts
        folder: made if it is not there
        summary: figures for programs, with "settings" and "seconds"; intervals are stored by name, numbers
            that are not finite as null

    Raises:
        OutputError: the folder or a file in it cannot be written
    """
    make_folder(folder)
    made_with = {name: fact for name, fact in describe_environment().items() if name in _SHOWN}
    report = dataclasses.replace(report, facts={**report.facts, **made_with})
    write_summary({**summary, "page": report_data(report)}, folder / SUMMARY_FILE)
    for name, text in ((SMALL_PAGE_FILE, small_page(report)), (PAGE_FILE, whole_page(report))):
        with write_atomically(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder / PAGE_FILE


def write_scores(rows: Sequence[Any], folder: Path) -> list[Path]:
    """Write rows of one dataclass as `scores.csv`, and as `scores.parquet` if pyarrow is there.

    Returns:
        the files written

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
    """Nothing without pyarrow; then no file of an earlier run stays either."""
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
    """The summary as JSON, with the versions, the commit, the device and the command that made it."""
    facts = describe_environment()
    versions = {name: facts.pop(name) for name in _PACKAGES if name in facts}
    with write_atomically(path) as part:
        text = json.dumps(
            plain({**summary, "versions": versions, "environment": facts}), indent=1, ensure_ascii=False
        )
        part.write_text(text + "\n", encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make the report's folder before any work is done.

    Raises:
        OutputError: it cannot be made
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror or error}") from error


def write_picture(picture: Image.Image, path: Path) -> None:
    """A sheet as PNG."""
    with write_atomically(path) as part:
        picture.save(part, format="PNG", optimize=True)


def plain(value: Any) -> Any:
    """What JSON can hold: intervals by name, paths as text, nothing that is not finite."""
    if isinstance(value, Interval):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
