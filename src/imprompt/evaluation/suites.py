"""Suites: what is generated, from what, and which figures come of it.

`evaluate_mini` asks of the embedded model: given one drawing of a concept that it has never seen, and no
text, does it paint that concept? Floor (λ = 0) and ceilings (a light copy of the reference; the reference
through the autoencoder) are scored the same way, so that every figure has its scale beside it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprompt import mini
from imprompt.checkpoint import load_adapter
from imprompt.evaluation.console import print_summary
from imprompt.evaluation.exhibits import exhibited_references, exhibits, write_every_concept, write_exhibits
from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.pictures import Drawing, HeldOut, light_copy, load_held_out
from imprompt.evaluation.report import make_folder, write_scores, write_summary
from imprompt.evaluation.sampling import Condition, Models, Settings, make_pictures, through_codec
from imprompt.evaluation.scoring import (
    CODEC,
    COPY,
    FLOOR,
    PROMPTED,
    WITH_TEXT,
    Galleries,
    Pictures,
    Score,
    diversity,
    score_pictures,
    summarise,
)


def evaluate_mini(
    *,
    output: Path,
    weights: Path | None = None,
    adapter: str = "mini",
    seeds: int = 4,
    steps: int = 25,
    guidance_scale: float = 7.5,
    concepts: int | None = None,
    batch_size: int = 48,
) -> dict[str, Any]:
    """Measure the embedded model on held-out concepts; offline, from what is in this package alone.

    Writes to `output`: `scores.csv` (a line per picture), `summary.json`, `contact-sheet.png` (24 concepts),
    `figure.png` (the README's), `every-concept.png`; prints the summary.

    Args:
        output: a folder, made if it is not there
        weights: folder of the embedded model, if not the shipped one
        adapter: another adapter for it: a file, as `imprompt train` writes it; "mini" is the model's own
        seeds: pictures of each concept with image prompt alone; the other conditions get one
        steps: denoising steps
        guidance_scale: w
        concepts: how many; all if not given
        batch_size: pictures in one call of the pipeline

    Raises:
        OutputError: the folder cannot be written
        UnknownModel: weights, judge or adapter are not there
        CheckpointError, AdapterMismatch: no adapter, or one for another base
    """
    make_folder(output)
    folder = mini.WEIGHTS if weights is None else weights
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge = load_judge(folder / "judge")
    measured = mini.adapter(weights=folder) if adapter == "mini" else load_adapter(adapter).float()
    models = Models(mini.pipeline(weights=folder).to(device), measured.to(device), judge)
    settings = Settings(seeds=seeds, steps=steps, guidance_scale=guidance_scale, batch_size=batch_size)
    return evaluate(models, load_held_out(), settings, output=output, concepts=concepts)


def evaluate(
    models: Models, held_out: HeldOut, settings: Settings, *, output: Path, concepts: int | None = None
) -> dict[str, Any]:
    """As `evaluate_mini`, on any models and held-out drawings."""
    started = time.monotonic()
    references = held_out.references(concepts)
    exhibited = exhibited_references(held_out, references)
    shown = [*exhibited.contacts, *exhibited.featured]
    asked, also_shown = conditions(settings), exhibits(settings)
    total = len(references) * sum(condition.seeds for condition in asked) + len(shown) * len(also_shown)
    with progress_bar(total) as advance:
        make = partial(make_pictures, models, held_out, settings=settings, advance=advance)
        made = {condition.name: make(references, condition) for condition in asked}
        exhibits_made = [make(shown, condition) for condition in also_shown]
    scores = score_all(models, held_out, references, made)
    summary = {
        "suite": "mini",
        "settings": asdict(settings) | {"concepts": len(references)},
        "seconds": round(time.monotonic() - started, 1),
        **summarise(scores, settings),
        "diversity": diversity(models.judge, made[PROMPTED]),
    }
    write_scores(scores, output)
    write_summary(summary, output / "summary.json")
    write_every_concept(held_out, references, made[PROMPTED], output)
    write_exhibits(held_out, exhibited, exhibits_made, settings, output)
    print_summary(summary)
    return summary


def score_all(
    models: Models, held_out: HeldOut, references: Sequence[Drawing], made: Mapping[str, Pictures]
) -> list[Score]:
    """Score what was made, and with it the ceilings: light copies, and references through the autoencoder."""
    plain = [held_out.on_white(reference) for reference in references]
    copies = [[light_copy(picture)] for picture in plain]
    rebuilt = [[picture] for picture in through_codec(models, plain)]
    galleries = Galleries(held_out, models.judge)
    every = {**made, COPY: copies, CODEC: rebuilt}
    return [
        score
        for name, pictures in every.items()
        for score in score_pictures(galleries, references, name, pictures)
    ]


def conditions(settings: Settings) -> list[Condition]:
    """What is scored: image prompt alone, none, and with text."""
    return [
        Condition(PROMPTED, 1.0, seeds=settings.seeds),
        Condition(FLOOR, 0.0),
        Condition(WITH_TEXT, 1.0, settings.text),
    ]


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that counts pictures, if that is a terminal."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("pictures", total=total)
        yield lambda pictures: progress.advance(task, pictures)
