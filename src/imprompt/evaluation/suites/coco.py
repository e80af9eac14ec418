"""The paper's Table 1: image prompt alone, on COCO2017 val.

    CLIP-I = cos(CLIP(picture), CLIP(reference))      CLIP-T = 2.5 · max(cos(CLIP(picture), CLIP(caption)), 0)

5,000 references, 4 pictures of each, DDIM 50 steps, guidance 7.5, λ 1, empty text, judge CLIP ViT-L/14
(arXiv 2308.06721, section 4.2). Where the paper is silent, docs/evaluation.md says what we chose.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imprompt.evaluation.methods import check_method
from imprompt.evaluation.metrics import clip_score
from imprompt.evaluation.suites.coco_report import coco_report
from imprompt.evaluation.suites.data import Captioned, check_share, read_coco, readable
from imprompt.evaluation.suites.features import features_of
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.judges import Seat
from imprompt.evaluation.suites.runs import Drawn, draw_and_seat
from imprompt.evaluation.suites.scoring import Likeness, Seen, likeness
from imprompt.evaluation.suites.settings import CocoSettings, load_settings
from imprompt.evaluation.suites.tasks import Task, seed_of
from imprompt.report import make_folder, write_report, write_scores
from imprompt.runtime.progress import show_progress


@dataclass(frozen=True)
class CocoScore:
    """One picture's scores by one judge; a row of scores.csv.

    Cosines are raw; Table 1's CLIP-T is `clip_score`. `text` is to the first caption, `text_mean` the mean
    over all; None where the judge reads no text. `rank` is the reference's place, from 0, among `gallery`.
    """

    key: str
    image: str
    sample: int
    seed: int
    judge: str
    is_self: bool
    similarity: float
    similarity_whole: float
    gap: float
    rank: int
    gallery: int
    text: float | None
    text_mean: float | None
    clip_score: float | None


def evaluate_coco(*, output: Path, config: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Run the protocol for one method, or go on with it; write scores and report to `output`.

    Args:
        output: a folder of its own for each method; see `BenchmarkFolder`
        config: a TOML file: see `CocoSettings`
        settings: `key=value` that replace what it says

    Returns:
        the summary, as in summary.json

    Raises:
        ConfigError: wrong settings, or a folder of others
        DataError: the data is not there, or more than 1 % of it cannot be used
        UnknownModel: a model or judge is not there
    """
    started = time.monotonic()
    asked = load_settings(CocoSettings, config, settings)
    check_method(asked.method, asked.drawing, scales=asked.data.scale != 1, text=False)
    images = read_coco(Path(asked.data.folder), asked.data.images)
    make_folder(output)
    folder = BenchmarkFolder(output)
    with show_progress("reading references", len(images)) as advance:
        good, bad = readable([image.path for image in images], advance)
    folder.note("unreadable", bad)
    check_share(bad, len(images), output / "unreadable.jsonl")
    images = [image for image in images if image.path in good]
    drawn = draw_and_seat(asked, "coco", tasks_of(images, asked), folder)
    judged = [(seat, see(seat, images, drawn, folder)) for seat in drawn.seats]
    rows = [row for seat, seen in judged for row in rows_of(seat, seen, drawn.tasks)]
    write_scores(rows, output)
    report, summary = coco_report(asked, images, drawn, judged, len(bad), folder)
    summary = {
        "suite": "coco",
        "settings": asked.model_dump(mode="json"),
        "seconds": round(time.monotonic() - started, 1),
        **summary,
    }
    write_report(report, output, summary)
    return summary


def tasks_of(images: Sequence[Captioned], asked: CocoSettings) -> list[Task]:
    """Every picture to be drawn: images by id, samples in order, no text."""
    return [
        Task(f"{image.name}-{k}", str(image.path), "", asked.data.scale, seed_of("coco", image.id, k))
        for image in images
        for k in range(asked.data.samples)
    ]


def see(seat: Seat, images: Sequence[Captioned], drawn: Drawn, folder: BenchmarkFolder) -> Seen:
    """Show everything to a judge, but what it has seen before."""
    places = {str(image.path): place for place, image in enumerate(images)}
    pictures = [folder.picture(task.key) for task in drawn.tasks]
    references, kept = [image.path for image in images], folder.path / "features"
    with show_progress(f"judging by {seat.judge.name}", len(pictures) + 3 * len(images)) as advance:
        return Seen(
            drawn=features_of(seat.judge, pictures, "drawn", kept, advance),
            owner=torch.tensor([places[task.reference] for task in drawn.tasks]),
            square=features_of(seat.judge, references, "square", kept, advance),
            whole=features_of(seat.judge, references, "whole", kept, advance),
            copies=features_of(seat.judge, references, "light copy", kept, advance),
            captions=caption_features(seat, images),
        )


def caption_features(seat: Seat, images: Sequence[Captioned]) -> list[torch.Tensor] | None:
    """Features of every image's captions."""
    if not seat.judge.reads_text:
        return None
    every = seat.judge.text_features([caption for image in images for caption in image.captions])
    return list(every.split([len(image.captions) for image in images]))


def rows_of(seat: Seat, seen: Seen, tasks: Sequence[Task]) -> list[CocoScore]:
    """A judge's scores, picture by picture."""
    found = likeness(seen, seen.drawn, seen.owner)
    return [_row(seat, found, place, task, len(seen.square)) for place, task in enumerate(tasks)]


def _row(seat: Seat, found: Likeness, place: int, task: Task, gallery: int) -> CocoScore:
    image, _, sample = task.key.partition("-")
    return CocoScore(
        key=task.key,
        image=image,
        sample=int(sample),
        seed=task.seed,
        judge=seat.judge.name,
        is_self=seat.is_self,
        similarity=float(found.square[place]),
        similarity_whole=float(found.whole[place]),
        gap=float(found.gap[place]),
        rank=int(found.rank[place]),
        gallery=gallery,
        text=None if found.first is None else float(found.first[place]),
        text_mean=None if found.mean is None else float(found.mean[place]),
        clip_score=None if found.first is None else float(clip_score(found.first[place])),
    )
