"""What fewer steps lose against the base's own 25, by a better solver and by a distilled LoRA, and the time.

    python bench/few_steps.py LORA [--scheduler NAME] [--steps N ...] [--subjects N] [--output FOLDER]

The base itself in 8 and 4 steps of DPM++ 2M with guidance, and the LoRA without. The same unseen characters,
noise, adapter and judge for all. A loss is the mean of paired differences, in brackets its 95 % interval by
bootstrap over characters. Seconds are those of one picture at a time, from references to the decoded picture,
the median of several. With an output folder it writes a sheet.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from imprompt import mini
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.evaluation.metrics import bootstrap_difference, bootstrap_interval
from imprompt.generation.base_parts import set_scheduler
from imprompt.lab.suite.images import ImageSettings, SuiteCondition, SuiteModels, generate_images
from imprompt.lab.suite.scoring import Score, measure_seed_distances, read_pictures, score_pictures
from imprompt.lab.suite.subjects import CHANGES, Subject, TextChange, sample_subjects, select_suitable
from imprompt.report import PictureRow, draw_sheet
from imprompt.runtime.progress import show_progress

SCALES = (0.5, 0.75, 1.0, 1.25)
"""λ at which image prompts are measured."""

SEEDS = 4
"""Images of one character, for diversity."""

SHOWN = 8
"""Characters on the sheet."""

TIMED = 9
"""Pictures that are timed."""


@dataclass(frozen=True)
class Arm:
    """A base and how it is sampled."""

    name: str
    models: SuiteModels
    settings: ImageSettings


@dataclass(frozen=True)
class Measurement:
    """What one arm did.

    Attributes:
        kept: λ → share of attributes kept without text, by character
        asked, text_kept: λ → share of images with what the text asks for, and share of the rest that is kept
        diversity: mean cosine distance among the images of each of some characters
        seconds: of one picture
        pictures: of the first characters, λ = 1
    """

    kept: dict[float, np.ndarray]
    asked: dict[float, np.ndarray]
    text_kept: dict[float, np.ndarray]
    diversity: float
    seconds: float
    pictures: Sequence[Image.Image]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=96, help="unseen characters")
    parser.add_argument("lora", type=Path, help="file of a LoRA that was distilled for the embedded base")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="numbers of steps with the LoRA")
    parser.add_argument(
        "--scheduler",
        choices=["ddim_trailing", "lcm"],
        default="ddim_trailing",
        help="ddim_trailing for progressive distillation, lcm for consistency distillation",
    )
    parser.add_argument("--output", type=Path, help="folder for the sheet")
    options = parser.parse_args(arguments)
    arms = build_arms(options.lora, options.scheduler, options.steps)
    subjects = sample_subjects("combinations", options.subjects)
    console = Console()
    with show_progress("pictures", len(arms) * count_pictures(subjects)) as advance:
        measured = {arm.name: measure(arm, subjects, advance) for arm in arms}
    console.print(tabulate(measured))
    console.print(tabulate_scales(measured))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_sheet(subjects, measured, options.output / "few-steps.png")
    return 0


def build_arms(lora: Path, scheduler: str, steps: Sequence[int]) -> list[Arm]:
    """Build the base with its own 25 steps, with another solver, then the distilled one."""
    judge, adapter = CharacterJudge.load(mini.WEIGHTS / "judge"), mini.adapter()
    base = SuiteModels(mini.pipeline(), adapter, judge)
    solver = replace(base, pipe=mini.pipeline())
    set_scheduler(solver.pipe, "dpm++_2m")
    few = replace(base, pipe=load_distilled(lora))
    set_scheduler(few.pipe, scheduler)
    return [
        Arm("25 steps", base, ImageSettings()),
        *(Arm(f"{count} steps of DPM++ 2M", solver, ImageSettings(count)) for count in (8, 4)),
        *(Arm(f"{count} steps, LoRA", few, ImageSettings(count, 1.0)) for count in steps),
    ]


def load_distilled(lora: Path) -> Any:
    """Load the base with a LoRA, fused."""
    pipe: Any = mini.pipeline()
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def count_pictures(subjects: Sequence[Subject]) -> int:
    """Return the number of pictures of one arm."""
    texts = sum(len(select_suitable(subjects, change)) for change in CHANGES.values())
    return (len(subjects) + texts) * len(SCALES) + (SEEDS - 1) * len(subjects[:24])


def measure(arm: Arm, subjects: Sequence[Subject], advance: Callable[[int], None]) -> Measurement:
    """Generate and judge all pictures of an arm."""
    pictures = {
        scale: generate_images(arm.models, subjects, SuiteCondition(scale), arm.settings, advance)
        for scale in SCALES
    }
    kept = {scale: collect(score(arm, subjects, some, scale), "kept") for scale, some in pictures.items()}
    texts = {scale: measure_texts(arm, subjects, scale, advance) for scale in SCALES}
    return Measurement(
        kept,
        {scale: collect(some, "asked") for scale, some in texts.items()},
        {scale: collect(some, "kept") for scale, some in texts.items()},
        measure_diversity(arm, subjects[:24], pictures[1.0][:24], advance),
        time_pictures(arm, subjects[:TIMED]),
        pictures[1.0][:SHOWN],
    )


def score(
    arm: Arm,
    subjects: Sequence[Subject],
    pictures: Sequence[Image.Image],
    scale: float,
    change: TextChange | None = None,
) -> list[Score]:
    """Score one picture of each character."""
    judge = arm.models.judge
    references = read_pictures(judge, [subject.picture for subject in subjects])
    readings = read_pictures(judge, pictures)
    return score_pictures(subjects, readings, references, condition=arm.name, scale=scale, change=change)


def measure_texts(
    arm: Arm, subjects: Sequence[Subject], scale: float, advance: Callable[[int], None]
) -> list[Score]:
    """Score one picture of each character with each text that asks something new of it."""
    scores: list[Score] = []
    for change in CHANGES.values():
        suited = select_suitable(subjects, change)
        pictures = generate_images(arm.models, suited, SuiteCondition(scale, change), arm.settings, advance)
        scores += score(arm, suited, pictures, scale, change)
    return scores


def collect(scores: Sequence[Score], field: str) -> np.ndarray:
    """Return one field of all scores."""
    return np.array([float(getattr(one, field)) for one in scores])


def measure_diversity(
    arm: Arm,
    subjects: Sequence[Subject],
    first: Sequence[Image.Image],
    advance: Callable[[int], None],
) -> float:
    """Return the mean distance among the images of several seeds."""
    others = [
        generate_images(arm.models, subjects, SuiteCondition(1.0, seed=seed), arm.settings, advance)
        for seed in range(1, SEEDS)
    ]
    embeddings = [read_pictures(arm.models.judge, some).embeddings for some in (first, *others)]
    return float(np.mean(measure_seed_distances(torch.stack(embeddings))))


def time_pictures(arm: Arm, subjects: Sequence[Subject]) -> float:
    """Return the median seconds of one picture, after one that warms up."""
    seconds = []
    for subject in subjects:
        started = time.perf_counter()
        generate_images(arm.models, [subject], SuiteCondition(1.0), arm.settings)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


# What is printed


def tabulate(measured: dict[str, Measurement]) -> Table:
    """Make the table at λ = 1, with the loss against the first arm."""
    table = Table(
        "", "attributes kept", "loss, points", "text followed", "rest kept", "diversity", "s / picture"
    )
    first = next(iter(measured.values()))
    for name, one in measured.items():
        loss = bootstrap_difference(first.kept[1.0], one.kept[1.0])
        table.add_row(
            name,
            bootstrap_interval(one.kept[1.0]).percent,
            "" if one is first else f"{100 * loss.mean:.1f} [{100 * loss.low:.1f}, {100 * loss.high:.1f}]",
            f"{one.asked[1.0].mean():.0%}",
            f"{one.text_kept[1.0].mean():.0%}",
            f"{one.diversity:.3f}",
            f"{one.seconds:.2f}",
        )
    return table


def tabulate_scales(measured: dict[str, Measurement]) -> Table:
    """Make the table over λ: attributes kept; text followed and rest kept."""
    table = Table("λ", *measured)
    for scale in SCALES:
        cells = [
            f"{one.kept[scale].mean():.0%}; {one.asked[scale].mean():.0%}, {one.text_kept[scale].mean():.0%}"
            for one in measured.values()
        ]
        table.add_row(f"{scale:g}", *cells)
    return table


def write_sheet(subjects: Sequence[Subject], measured: dict[str, Measurement], path: Path) -> None:
    """Write references and pictures side by side."""
    columns = {"reference": [subject.picture for subject in subjects[:SHOWN]]}
    columns |= {name: list(one.pictures) for name, one in measured.items()}
    rows = [PictureRow(row) for row in zip(*columns.values(), strict=True)]
    draw_sheet(list(columns), rows).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
