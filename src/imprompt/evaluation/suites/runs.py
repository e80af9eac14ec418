"""What both benchmarks do: check, draw, load the judges, say how it was made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from imprompt.evaluation.methods import Published, image_encoder_of
from imprompt.evaluation.suites.drawing import Job, draw_all
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.judges import Seat, load_judges
from imprompt.evaluation.suites.settings import (
    CocoSettings,
    DrawingSettings,
    DreamBenchSettings,
    MethodSettings,
)
from imprompt.evaluation.suites.tasks import Task
from imprompt.runtime.progress import show_progress

HOW_MANY = ("workers", "engine")
"""Keys of `[drawing]` that pictures do not follow from."""


class Drawn(NamedTuple):
    """What a run has drawn, and who judges it."""

    tasks: list[Task]
    failed: dict[str, str]
    seats: list[Seat]


def draw_and_seat(
    asked: CocoSettings | DreamBenchSettings, suite: str, tasks: Sequence[Task], folder: BenchmarkFolder
) -> Drawn:
    """Load the judges, so that one that is not there is found at once; then draw what is not drawn yet.

    Raises:
        ConfigError, DataError, UnknownModel, MissingExtra: see `draw_all`, `load_judges`
    """
    seats = load_judges(asked.judging, image_encoder_of(asked.method))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder.begin(what_pictures_follow_from(asked, suite, device))
    job = Job(asked.method, asked.drawing, folder, device)
    with show_progress("drawing", len(tasks)) as advance:
        failed = draw_all(tasks, job, advance)
    return Drawn([task for task in tasks if task.key not in failed], failed, seats)


def what_pictures_follow_from(
    asked: CocoSettings | DreamBenchSettings, suite: str, device: str
) -> dict[str, Any]:
    """Every setting that changes a picture, flat. Which pictures and how many of them there are does not."""
    drawing = {key: value for key, value in asked.drawing.model_dump().items() if key not in HOW_MANY}
    if device == "cpu":
        drawing["precision"] = "fp32"
    method = {f"method.{key}": value for key, value in asked.method.model_dump().items()}
    drawn = {f"drawing.{key}": value for key, value in drawing.items()}
    return {"suite": suite, **method, **drawn, **_of_data(asked), "device": device}


def _of_data(asked: CocoSettings | DreamBenchSettings) -> dict[str, Any]:
    samples = {"data.samples": asked.data.samples}
    return samples | ({"data.scale": asked.data.scale} if isinstance(asked, CocoSettings) else {})


def method_words(method: MethodSettings, published: Published) -> str:
    """The method as a row's name: what it is, and with which files."""
    files = [name for name in (method.model, method.adapter) if name]
    return published.title + (f" ({', '.join(Path(name).name or name for name in files)})" if files else "")


def sampler_words(drawing: DrawingSettings, published: Published) -> str:
    """Which sampler, and how long."""
    name = "DDIM" if drawing.sampler == "ddim" and published.takes_sampler else "its own sampler"
    return f"{name}, {drawing.steps} steps, guidance {drawing.guidance_scale:g}"


def fault_words(unreadable: int, failed: int) -> str:
    """What is missing, as a sentence; nothing if nothing is."""
    parts = [f"{unreadable} references could not be read (unreadable.jsonl)"] * (unreadable > 0)
    parts += [f"{failed} pictures could not be drawn (failed.jsonl)"] * (failed > 0)
    return f"Left out: {'; '.join(parts)}." if parts else ""
