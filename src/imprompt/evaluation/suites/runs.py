"""What both benchmarks do: load the judges, generate the images, and say how it was done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imprompt.evaluation.judges import LoadedJudge, load_judges
from imprompt.evaluation.methods import METHODS, load_conditioning_encoder
from imprompt.evaluation.settings import BenchmarkSettings, MethodSettings
from imprompt.evaluation.suites.drawing import DrawingJob, draw_all
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.tasks import Task
from imprompt.report import Report, to_plain, write_report, write_scores
from imprompt.runtime.devices import choose_device
from imprompt.runtime.progress import show_progress

PARALLELISM_KEYS = ("workers", "engine")
"""Keys of `[drawing]` that do not change an image."""


class BenchmarkRun(NamedTuple):
    """The images of a run and its judges.

    Attributes:
        tasks: whose images exist
        failed: key of a task without an image → reason
        judges: the one that reads text first
    """

    tasks: list[Task]
    failed: dict[str, str]
    judges: list[LoadedJudge]


def generate_images_and_load_judges(
    options: BenchmarkSettings, suite: str, tasks: Sequence[Task], folder: BenchmarkFolder
) -> BenchmarkRun:
    """Load the judges first, so that a missing one is found at once, and generate the missing images.

    Raises:
        ConfigError, DataError, UnknownModel, MissingExtra: see `draw_all`, `load_judges`
    """
    judges = load_judges(options.judging, load_conditioning_encoder(options.method))
    device = choose_device().type
    folder.begin(collect_image_settings(options, suite, device))
    job = DrawingJob(options.method, options.drawing, folder, device)
    with show_progress("drawing", len(tasks)) as advance:
        failed = draw_all(tasks, job, advance)
    return BenchmarkRun([task for task in tasks if task.key not in failed], failed, judges)


def collect_image_settings(options: BenchmarkSettings, suite: str, device: str) -> dict[str, Any]:
    """Return every setting that changes an image, under dotted keys; which images there are is not one."""
    drawing = {
        key: value for key, value in options.drawing.model_dump().items() if key not in PARALLELISM_KEYS
    }
    if device == "cpu":
        drawing["precision"] = "fp32"
    data = {key: value for key, value in options.model_dump()["data"].items() if key in ("samples", "scale")}
    groups = {"method": options.method.model_dump(), "drawing": drawing, "data": data}
    flat = {f"{name}.{key}": value for name, group in groups.items() for key, value in group.items()}
    return {"suite": suite, **flat, "device": device}


def write_results(
    suite: str,
    options: BenchmarkSettings,
    scores: Sequence[Any],
    result: Any,
    report: Report,
    output: Path,
    seconds: float,
) -> None:
    """Write scores, summary and page.

    Args:
        suite: the suite's name
        options: the settings of the run
        scores: rows of one dataclass
        result: a dataclass of figures
        report: the page
        output: the folder
        seconds: how long the run took

    Raises:
        OutputError: a file cannot be written
    """
    write_scores(scores, output)
    head = {"suite": suite, "settings": options.model_dump(mode="json"), "seconds": round(seconds, 1)}
    write_report(report, output, {**head, **to_plain(result)})


# Words of the page


def describe_method(method: MethodSettings) -> str:
    """Name the method and its files, as the name of a row."""
    title = METHODS[method.name].title
    files = [name for name in (method.model, method.adapter) if name]
    return title + (f" ({', '.join(Path(name).name or name for name in files)})" if files else "")


def write_lead(subject: str, run: BenchmarkRun, unreadable: int) -> str:
    """Write the sentences under the page's title: what was measured, which judge is self, what is missing."""
    selves = [judge.name for judge in run.judges if judge.is_self]
    warning = f" {', '.join(selves)} conditions the method itself: such columns say self." if selves else ""
    faults = [f"{unreadable} references could not be read (unreadable.jsonl)"] * (unreadable > 0)
    faults += [f"{len(run.failed)} pictures could not be drawn (failed.jsonl)"] * (len(run.failed) > 0)
    missing = f" Left out: {'; '.join(faults)}." if faults else ""
    return f"{subject}, {len(run.tasks):,} pictures.{warning}{missing}"


def describe_run(options: BenchmarkSettings, run: BenchmarkRun, more: Mapping[str, Any]) -> dict[str, Any]:
    """List how a run was made, by name; `more` are the suite's own facts. Empty facts are left out."""
    published, drawing = METHODS[options.method.name], options.drawing
    sampler = "DDIM" if drawing.sampler == "ddim" and published.takes_sampler else "its own sampler"
    facts = {
        "base or pipeline": options.method.model or published.model,
        "adapter": options.method.adapter,
        "second model": options.method.second or published.second,
        "particular": published.note,
        "sampler": f"{sampler}, {drawing.steps} steps, guidance {drawing.guidance_scale:g}",
        "negative prompt": drawing.negative_prompt,
        "size": f"{drawing.size} px" if drawing.size else "the model's own",
        **more,
        "judges": ", ".join(judge.name + (" (self)" if judge.is_self else "") for judge in run.judges),
        "remarks": "; ".join(remark for judge in run.judges for remark in judge.model.remarks()),
    }
    return {name: value for name, value in facts.items() if value != ""}
