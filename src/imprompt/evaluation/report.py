"""Results on disk and on the terminal: a line per picture, a summary, a table."""

import csv
import importlib.metadata
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from imprompt.errors import OutputError
from imprompt.evaluation.metrics import Interval
from imprompt.output import written_whole


@dataclass(frozen=True)
class Score:
    """One picture's scores.

    `similarity` is to the reference, `gap` how much more than to a shuffled one; `rank` is the right
    concept's place, from 0, among `gallery` concepts in the reference's style; `ground` is the colour word
    nearest to the border's colour; `is_twin` says that a training drawing looks like the reference.
    """

    condition: str
    concept: str
    style: str
    is_twin: bool
    seed: int
    similarity: float
    gap: float
    rank: int
    gallery: int
    ground: str

    @property
    def shuffled_similarity(self) -> float:
        """Similarity to a shuffled reference."""
        return self.similarity - self.gap


def make_folder(folder: Path) -> None:
    """Make the report's folder before any work is done.

    Raises:
        OutputError: it cannot be made
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror or error}") from error


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """One line per picture, as CSV."""
    text = io.StringIO()
    names = [field.name for field in fields(Score)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    with written_whole(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """The summary as JSON, with the versions of what made it."""
    packages = ("imprompt", "torch", "diffusers", "transformers", "pillow")
    versions = {package: importlib.metadata.version(package) for package in packages}
    with written_whole(path) as part:
        text = json.dumps(_plain({**summary, "versions": versions}), indent=1, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")


def write_picture(picture: Image.Image, path: Path) -> None:
    """A sheet as PNG."""
    with written_whole(path) as part:
        picture.save(part, format="PNG", optimize=True)


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """The summary as tables."""
    console = console or Console()
    for name, title in (("all", "all concepts"), ("without twins", "without twins of training drawings")):
        figures = summary[name]
        if figures:
            console.print(_table(title, figures))
    text = summary["text"]
    console.print(
        f"text: {_percent(text['with text'])} of pictures stand on {text['ground']} when asked to, "
        f"{_percent(text['without text'])} when not"
    )
    if summary["diversity"] is not None:
        console.print(
            f"diversity: {_number(summary['diversity'])} mean cosine distance among a concept's seeds"
        )


def _table(title: str, figures: Mapping[str, Any]) -> Table:
    table = Table(title=f"{title}: {figures['concepts']}", title_justify="left")
    for heading in ("", "similarity", "gap to shuffled", "retrieval@1", "@5"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in figures["conditions"].items():
        cells = (_number(row["gap"]), _percent(row["retrieval@1"]), f"{row['retrieval@5'].mean:.0%}")
        table.add_row(name, f"{row['similarity'].mean:.3f}", *cells)
    table.add_section()
    table.add_row("chance", "", "", f"{figures['chance@1']:.1%}", f"{figures['chance@5']:.1%}")
    return table


def _number(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _percent(interval: Interval) -> str:
    return f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _plain(value: Any) -> Any:
    """What JSON can hold: intervals by name, no NaN."""
    if isinstance(value, Interval):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
