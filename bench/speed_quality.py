"""Attributes kept against seconds per picture, for every speed of `--speed` and the settings it is made of.

    python bench/speed_quality.py [--subjects N] [--arms NAME ...] [--lora FILE ...] [--output FOLDER]

The embedded base draws unseen characters with the same noise in every arm. The judge counts the attributes
that are kept, without text and with texts that ask for something else. A loss is the mean of paired
differences from the first arm, in brackets its 95 % interval by bootstrap over pictures. Seconds are those of
one picture at a time, the arms in turns, the median of several. FLOP are those of the same picture, which no
other program on the machine disturbs. `--output` gets plot.png and results.json.

A LoRA that was distilled progressively for 4 steps (`--lora`) is one more arm. Arms with OpenVINO need
`imprompt[openvino]`, which does the work that FLOP count elsewhere, so theirs are those of PyTorch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from few_steps import collect, load_distilled
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import imprompt
from imprompt import mini
from imprompt.attention.feature_cache import FeatureCache
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.evaluation.metrics import bootstrap_difference, bootstrap_interval
from imprompt.generation.base_parts import set_scheduler
from imprompt.generation.guidance import build_step_arguments
from imprompt.generation.job.speeds import GENERAL_SPEEDS
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.generation.settings import Settings
from imprompt.lab.suite.images import ImageSettings, SuiteCondition, SuiteModels, generate_rows
from imprompt.lab.suite.scoring import Score, read_pictures, score_pictures
from imprompt.lab.suite.subjects import CHANGES, Subject, TextChange, sample_subjects, select_suitable
from imprompt.reference import Reference
from imprompt.runtime.progress import show_progress

GUIDANCE = 3.0
"""The guidance scale at which the embedded model is measured everywhere."""

FASTEST_COMPUTATION: Mapping[str, Any] = {"dtype": "bfloat16", "backend": "openvino"}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "15 steps": {"steps": 15},
    "10 steps": {"steps": 10},
    "DPM++ 25": {"scheduler": "dpm++_2m"},
    "DPM++ 15": {"scheduler": "dpm++_2m", "steps": 15},
    "DPM++ 10": {"scheduler": "dpm++_2m", "steps": 10},
    "DPM++ 8": {"scheduler": "dpm++_2m", "steps": 8},
    "DPM++ 6": {"scheduler": "dpm++_2m", "steps": 6},
    "DPM++ 4": {"scheduler": "dpm++_2m", "steps": 4},
    "DPM++ 3": {"scheduler": "dpm++_2m", "steps": 3},
    "DPM++ 2": {"scheduler": "dpm++_2m", "steps": 2},
    "DPM++ 10, cache 2": {"scheduler": "dpm++_2m", "steps": 10, "feature_cache": 2},
    "DPM++ 10, guidance 0–0.5": {"scheduler": "dpm++_2m", "steps": 10, "guidance_interval": (0.0, 0.5)},
    "DPM++ 15, guidance 0–0.6": {"scheduler": "dpm++_2m", "steps": 15, "guidance_interval": (0.0, 0.6)},
    "UniPC 10": {"scheduler": "unipc", "steps": 10},
    "guidance 0–0.6": {"guidance_interval": (0.0, 0.6)},
    "guidance 0–0.4": {"guidance_interval": (0.0, 0.4)},
    "guidance 0.2–0.8": {"guidance_interval": (0.2, 0.8)},
    "bfloat16": {"dtype": "bfloat16"},
    "OpenVINO": {"backend": "openvino"},
    "OpenVINO bfloat16": FASTEST_COMPUTATION,
    "DPM++ 8, OpenVINO bfloat16": {"scheduler": "dpm++_2m", "steps": 8, **FASTEST_COMPUTATION},
    "DPM++ 4, OpenVINO bfloat16": {"scheduler": "dpm++_2m", "steps": 4, **FASTEST_COMPUTATION},
    "DPM++ 3, OpenVINO bfloat16": {"scheduler": "dpm++_2m", "steps": 3, **FASTEST_COMPUTATION},
    "DPM++ 2, OpenVINO bfloat16": {"scheduler": "dpm++_2m", "steps": 2, **FASTEST_COMPUTATION},
    "cache 2": {"feature_cache": 2},
    "cache 3": {"feature_cache": 3},
}
"""What speeds are made of, one thing at a time."""

TIMED = 5
"""Pictures of each arm that are timed."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Arm:
    """A base and the settings with which it draws."""

    name: str
    models: SuiteModels
    settings: Settings
    scheduler: str | None = None
    is_accelerated: bool = False


class Result(NamedTuple):
    """What one arm did: shares by picture, and what one picture takes."""

    kept: np.ndarray
    asked: np.ndarray
    text_kept: np.ndarray
    seconds: list[float]
    gflop: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=96, help="unseen characters")
    parser.add_argument("--arms", nargs="+", help="speeds and variants; by default all of them")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="few-step LoRA of the base")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, help="folder for the plot and the figures")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    arms = build_arms(options.arms, options.lora)
    subjects = sample_subjects("combinations", options.subjects)
    summary: dict[str, Any] = {}
    for results in measure(arms, subjects, options.clock):
        summary = summarize(results, options)
        if options.output is not None:
            write(summary, options.output)
    print(json.dumps(summary, indent=1)) if options.json else Console().print(tabulate(summary["arms"]))
    return 0


def build_arms(names: Sequence[str] | None, loras: Sequence[Path]) -> list[Arm]:
    """Build the arms; the first one is always the base as it is."""
    known = {"exact": GENERAL_SPEEDS["exact"], **VARIANTS, **GENERAL_SPEEDS}
    chosen = ["exact", *(name for name in (names or known) if name != "exact")]
    models = SuiteModels(mini.pipeline(), mini.adapter(), CharacterJudge.load(mini.WEIGHTS / "judge"))
    arms = [build_arm(name, models, known[name]) for name in chosen]
    for lora in loras:
        few = replace(models, pipe=load_distilled(lora))
        arms.append(build_arm(f"{lora.parent.name}, 4 steps", few, {"guidance_scale": 1.0, "steps": 4}))
    return arms


def build_arm(name: str, models: SuiteModels, values: Mapping[str, Any]) -> Arm:
    """Build an arm from a job's settings; another number format or backend has a base of its own."""
    own: dict[str, Any] = {"scheduler": None, "dtype": "float32", "backend": "torch", **values}
    scheduler, dtype, backend = (own.pop(key) for key in ("scheduler", "dtype", "backend"))
    settings: Any = {"guidance_scale": GUIDANCE} | own
    if backend == "openvino":
        models = replace(models, pipe=mini.pipeline())
        imprompt.accelerate(models.pipe, dtype=dtype)
    elif dtype != "float32":
        pipe = imprompt.load_pipeline("mini", device="cpu", dtype=getattr(torch, dtype))
        models = replace(models, pipe=pipe)
    return Arm(name, models, Settings(**settings), scheduler, backend == "openvino")


# Pictures


def draw(
    arm: Arm,
    subjects: Sequence[Subject],
    condition: SuiteCondition,
    advance: Callable[[int], None] = lambda pictures: None,
) -> list[Image.Image]:
    """Draw a picture of each subject."""
    pipe: Any = arm.models.pipe
    own = pipe.scheduler
    inputs: dict[str, Any] = {"guidance_scale": arm.settings.guidance_scale}
    inputs |= build_step_arguments(pipe, arm.settings, None)
    # A list would be divided among the rows.
    inputs = {name: tuple(x) if isinstance(x, list) else x for name, x in inputs.items()}

    def call(rows: slice, arguments: dict[str, Any]) -> list[Image.Image]:
        references = [Reference(subject.picture, scale=condition.scale) for subject in subjects[rows]]
        with arm.models.adapter.use(references):
            return call_pipeline(pipe, arguments)

    every = arm.settings.feature_cache
    if arm.scheduler is not None:
        set_scheduler(pipe, arm.scheduler)
    cache = FeatureCache(pipe, every) if every > 1 else nullcontext()
    try:
        with cache, arm.models.adapter.attach(pipe):
            size = ImageSettings(arm.settings.steps)
            return generate_rows(call, subjects, condition, size, advance, **inputs)
    finally:
        pipe.scheduler = own


def measure(arms: Sequence[Arm], subjects: Sequence[Subject], clock: str) -> Iterator[dict[str, Result]]:
    """Draw and judge all pictures, and time some; yield the results so far after every arm."""
    texts = {name: some for name, one in CHANGES.items() if (some := select_suitable(subjects, one))}
    count = len(subjects) + sum(map(len, texts.values()))
    seconds = time_pictures(arms, subjects[:TIMED], CLOCKS[clock])
    results: dict[str, Result] = {}
    with show_progress("pictures", len(arms) * count) as advance:
        for arm in arms:
            pictures = draw(arm, subjects, SuiteCondition(1.0), advance)
            kept = collect(score(arm, subjects, pictures), "kept")
            scores: list[Score] = []
            for name, some in texts.items():
                made = draw(arm, some, SuiteCondition(1.0, CHANGES[name]), advance)
                scores += score(arm, some, made, CHANGES[name])
            asked, text_kept = collect(scores, "asked"), collect(scores, "kept")
            counted = replace(arm, models=arms[0].models) if arm.is_accelerated else arm
            gflop = count_gflop(counted, subjects[0])
            results[arm.name] = Result(kept, asked, text_kept, seconds[arm.name], gflop)
            yield results


def score(
    arm: Arm, subjects: Sequence[Subject], pictures: Sequence[Image.Image], change: TextChange | None = None
) -> list[Score]:
    """Score one picture of each subject."""
    judge = arm.models.judge
    references = read_pictures(judge, [subject.picture for subject in subjects])
    readings = read_pictures(judge, pictures)
    return score_pictures(subjects, readings, references, condition=arm.name, scale=1.0, change=change)


def time_pictures(
    arms: Sequence[Arm], subjects: Sequence[Subject], now: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of single pictures, the arms in turns; the first round warms up."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number, subject in enumerate((subjects[0], *subjects)):
        for arm in arms:
            started = now()
            draw(arm, [subject], SuiteCondition(1.0))
            if number:
                seconds[arm.name].append(now() - started)
    return seconds


def count_gflop(arm: Arm, subject: Subject) -> float:
    """Return the GFLOP of products, convolutions and attention of one picture."""
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *rest, **more: sdpa_flop_count(q, k, v)
        )
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        draw(arm, [subject], SuiteCondition(1.0))
    return counter.get_total_flops() / 1e9


# What is printed


def write(summary: Mapping[str, Any], folder: Path) -> None:
    """Write the figures and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw_plot(summary["arms"]).save(folder / "plot.png")


def summarize(results: Mapping[str, Result], options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    first = next(iter(results.values()))
    arms = {name: summarize_arm(first, one) for name, one in results.items()}
    return {"subjects": options.subjects, "clock": options.clock, "arms": arms}


def summarize_arm(first: Result, one: Result) -> dict[str, Any]:
    """Return one arm's figures, with paired losses against the first arm in points."""
    fields = {"kept": "attributes kept", "asked": "text followed", "text_kept": "rest kept"}
    figures: dict[str, Any] = {}
    for field, title in fields.items():
        own, others = getattr(one, field), getattr(first, field)
        loss = bootstrap_difference(others, own)
        figures[title] = [round(100 * x, 2) for x in bootstrap_interval(own)]
        figures[f"loss: {title}"] = [round(100 * x, 2) for x in loss]
    median = statistics.median(one.seconds)
    paired = [a / b for a, b in zip(first.seconds, one.seconds, strict=True)]
    return figures | {
        "seconds": round(median, 4),
        "times as fast": round(statistics.median(paired), 2),
        "GFLOP": round(one.gflop, 1),
        "FLOP of the first": round(first.gflop / one.gflop, 2),
    }


def tabulate(arms: Mapping[str, Mapping[str, Any]]) -> Table:
    """Make the table."""
    titles = ("attributes kept", "text followed", "rest kept")
    table = Table("", *titles, "s / picture", "times as fast", "FLOP, first / this")
    for name, one in arms.items():
        cells = [f"{one[title][0]:.1f} (−{_interval(one[f'loss: {title}'])})" for title in titles]
        row = (f"{one['seconds']:.3f}", f"{one['times as fast']:.2f}", f"{one['FLOP of the first']:.2f}")
        table.add_row(name, *cells, *row)
    return table


def _interval(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def draw_plot(arms: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """Plot attributes kept, with their intervals, against seconds per picture."""
    width, height, edge = 960, 600, 70
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    longest = 1.1 * max(one["seconds"] for one in arms.values())
    low = min(one["attributes kept"][1] for one in arms.values()) - 2
    high = max(one["attributes kept"][2] for one in arms.values()) + 4

    def place(seconds: float, kept: float) -> tuple[float, float]:
        x = edge + seconds / longest * (width - 2 * edge)
        return x, height - edge - (kept - low) / (high - low) * (height - 2 * edge)

    pen.rectangle((edge, edge, width - edge, height - edge), outline="gray")
    for part in range(6):
        seconds, kept = part / 5 * longest, low + part / 5 * (high - low)
        pen.text((place(seconds, low)[0] - 10, height - edge + 8), f"{seconds:.2f}", fill="black")
        pen.text((edge - 36, place(0, kept)[1] - 6), f"{kept:.1f}", fill="black")
    pen.text((width // 2 - 60, height - 30), "seconds per picture", fill="black")
    pen.text((10, 30), "attributes kept, %, and 95 % interval", fill="black")
    for rank, (name, one) in enumerate(sorted(arms.items(), key=lambda item: item[1]["seconds"])):
        mean, bottom, top = one["attributes kept"]
        color = "crimson" if name in GENERAL_SPEEDS else "steelblue"
        x, y = place(one["seconds"], mean)
        label = edge + 8 + 16 * (rank % 6)  # names of neighbors stand below each other
        pen.line((x, label + 6, x, place(0, top)[1]), fill="gainsboro")
        pen.line((x, place(0, bottom)[1], x, place(0, top)[1]), fill=color)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        pen.text((x + 3, label), name.replace("–", "-"), fill=color)
    return picture


if __name__ == "__main__":
    raise SystemExit(main())
