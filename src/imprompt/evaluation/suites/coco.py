"""The paper's Table 1: image prompt alone, on COCO2017 val.

    CLIP-I = cos(CLIP(picture), CLIP(reference))      CLIP-T = 2.5 · max(cos(CLIP(picture), CLIP(caption)), 0)

5,000 references, 4 images of each, DDIM 50 steps, guidance 7.5, λ 1, empty text, judge CLIP ViT-L/14
(arXiv 2308.06721, section 4.2). docs/evaluation.md lists the choices that the paper leaves open.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imprompt.evaluation.judges import LoadedJudge
from imprompt.evaluation.methods import check_method
from imprompt.evaluation.metrics import clip_score
from imprompt.evaluation.settings import CocoSettings, load_settings
from imprompt.evaluation.suites.coco_report import CocoResult, build_report, build_result
from imprompt.evaluation.suites.data import CaptionedImage, check_readable_share, find_readable, read_coco
from imprompt.evaluation.suites.features import compute_features
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.runs import BenchmarkRun, generate_images_and_load_judges, write_results
from imprompt.evaluation.suites.scoring import JudgeFeatures, SimilarityScores, score_images
from imprompt.evaluation.suites.tasks import Task, derive_seed
from imprompt.runtime.output import make_folder
from imprompt.runtime.progress import show_progress


@dataclass(frozen=True)
class CocoScore:
    """One image's scores by one judge; a row of scores.csv.

    Cosines are raw; Table 1's CLIP-T is `clip_score`. `text` is the cosine to the first caption, `text_mean`
    the mean over all; None where the judge reads no text. `rank` is the reference's place, from 0, among
    `gallery`.
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


def evaluate_coco(*, output: Path, config: Path, settings: Sequence[str] = ()) -> CocoResult:
    """Run the protocol for one method, or resume it; write scores and report to `output`.

    Args:
        output: a separate folder for each method; see `BenchmarkFolder`
        config: a TOML file; see `CocoSettings`
        settings: `key=value` that replace values of the file

    Returns:
        the figures of summary.json

    Raises:
        ConfigError: wrong settings, or the folder holds images of other settings
        DataError: the data is missing, or more than 1 % of it cannot be used
        UnknownModel: a model or a judge cannot be found
    """
    started = time.monotonic()
    options = load_settings(CocoSettings, config, settings)
    check_method(options.method, options.drawing, scales=options.data.scale != 1, text=False)
    images = read_coco(Path(options.data.folder), options.data.images)
    make_folder(output)
    folder = BenchmarkFolder(output)
    with show_progress("reading references", len(images)) as advance:
        good, bad = find_readable([image.path for image in images], advance)
    folder.write_faults("unreadable", bad)
    check_readable_share(bad, len(images), output / "unreadable.jsonl")
    images = [image for image in images if image.path in good]
    run = generate_images_and_load_judges(options, "coco", list_tasks(images, options), folder)
    features = [compute_judge_features(judge, images, run, folder) for judge in run.judges]
    rows = [row for pair in zip(run.judges, features, strict=True) for row in score_tasks(*pair, run.tasks)]
    result = build_result(options, run, features, len(bad))
    report = build_report(options, images, run, features, result, folder)
    write_results("coco", options, rows, result, report, output, time.monotonic() - started)
    return result


def list_tasks(images: Sequence[CaptionedImage], options: CocoSettings) -> list[Task]:
    """List the images to be generated: references by id, samples in order, no text."""
    return [
        Task(f"{image.name}-{k}", str(image.path), "", options.data.scale, derive_seed("coco", image.id, k))
        for image in images
        for k in range(options.data.samples)
    ]


def compute_judge_features(
    judge: LoadedJudge, images: Sequence[CaptionedImage], run: BenchmarkRun, folder: BenchmarkFolder
) -> JudgeFeatures:
    """Compute a judge's features of everything, or read those that are stored."""
    places = {str(image.path): place for place, image in enumerate(images)}
    files = [folder.picture_path(task.key) for task in run.tasks]
    references, stored = [image.path for image in images], folder.path / "features"
    with show_progress(f"judging by {judge.name}", len(files) + 3 * len(images)) as advance:
        return JudgeFeatures(
            images=compute_features(judge.model, files, "drawn", stored, advance),
            owner=torch.tensor([places[task.reference] for task in run.tasks]),
            square=compute_features(judge.model, references, "square", stored, advance),
            whole=compute_features(judge.model, references, "whole", stored, advance),
            copies=compute_features(judge.model, references, "light copy", stored, advance),
            captions=compute_caption_features(judge, images),
        )


def compute_caption_features(
    judge: LoadedJudge, images: Sequence[CaptionedImage]
) -> list[torch.Tensor] | None:
    """Compute the features of every image's captions; None if the judge reads no text."""
    if not judge.reads_text:
        return None
    features = judge.model.text_features([caption for image in images for caption in image.captions])
    return list(features.split([len(image.captions) for image in images]))


def score_tasks(judge: LoadedJudge, features: JudgeFeatures, tasks: Sequence[Task]) -> list[CocoScore]:
    """Return a judge's score of every image."""
    scores = score_images(features, features.images, features.owner)
    return [_row(judge, scores, place, task, len(features.square)) for place, task in enumerate(tasks)]


def _row(judge: LoadedJudge, scores: SimilarityScores, place: int, task: Task, gallery: int) -> CocoScore:
    image, _, sample = task.key.partition("-")
    first, mean = scores.first_caption, scores.all_captions
    return CocoScore(
        key=task.key,
        image=image,
        sample=int(sample),
        seed=task.seed,
        judge=judge.name,
        is_self=judge.is_self,
        similarity=float(scores.square[place]),
        similarity_whole=float(scores.whole[place]),
        gap=float(scores.gap[place]),
        rank=int(scores.rank[place]),
        gallery=gallery,
        text=None if first is None else float(first[place]),
        text_mean=None if mean is None else float(mean[place]),
        clip_score=None if first is None else float(clip_score(first[place])),
    )
