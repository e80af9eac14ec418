"""The results of `coco` and their page: Table 1's columns with floor and ceiling, and example images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprompt.evaluation.judges import LoadedJudge
from imprompt.evaluation.judges.clip import PAPER_JUDGE
from imprompt.evaluation.methods import METHODS
from imprompt.evaluation.metrics import chance_within, clip_score, cmmd, is_retrieved, kid, normalize_score
from imprompt.evaluation.settings import CocoSettings
from imprompt.evaluation.suites.data import CaptionedImage
from imprompt.evaluation.suites.features import prepare_view
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.runs import BenchmarkRun, describe_method, describe_run, write_lead
from imprompt.evaluation.suites.scoring import (
    JudgeFeatures,
    SimilarityScores,
    average_over_references,
    find_first_of_each,
    measure_diversity,
    score_bounds,
    score_images,
    split_by_owner,
)
from imprompt.report import (
    Cell,
    Column,
    Grid,
    Interval,
    KeyFigure,
    PictureRow,
    Report,
    Section,
    Table,
    pick_best_median_worst,
)

PAPER_ROW = "the paper's Table 1"

CHOICES = (
    "The paper names its metrics, judge, steps, guidance and numbers of pictures, and leaves the rest open. "
    "Here CLIP-T is to the first caption by id, and as a cosine also the mean over all. The reference is "
    "judged as the middle square that its encoder sees, and whole, squeezed to a square. The negative prompt "
    "is empty unless the facts say otherwise. Seeds follow from image id and sample. Intervals are 95 % "
    "bootstraps over references."
)

SETS = (
    "Distances between the generated images, one of each reference, and the references, in each judge's "
    "features; 0 is the same distribution. Compare them under one judge and one number of pictures only."
)


@dataclass(frozen=True)
class ConditionFigures:
    """The mean scores of one row of the table; the text scores are None where the judge reads no text."""

    similarity: Interval
    similarity_whole: Interval
    gap: Interval
    retrieval_1: Interval
    retrieval_5: Interval
    clip_score: Interval | None
    text: Interval | None
    text_mean: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures under their names in summary.json."""
        return {
            name.replace("_", " ").replace("retrieval ", "retrieval@"): v for name, v in vars(self).items()
        }


@dataclass(frozen=True)
class JudgeFigures:
    """A judge's figures.

    Attributes:
        is_self: whether it is the encoder that conditions the method
        conditions: the method, then the bounds of `score_bounds`, by name
        normalized_similarity: the similarity's share of the way from the floor to a light copy
        normalized_text: the text score's share of the way from the floor to the reference
        chance: retrieval@1 of blind guessing
        diversity: mean distance among the images of one reference
        kid, cmmd: distances between the images and the references; None for a single image
    """

    is_self: bool
    conditions: Mapping[str, ConditionFigures]
    normalized_similarity: float
    normalized_text: float | None
    chance: float
    diversity: Interval | None
    kid: float | None
    cmmd: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures under their names in summary.json."""
        return {
            "is self": self.is_self,
            "conditions": self.conditions,
            "normalised similarity": self.normalized_similarity,
            "normalised text": self.normalized_text,
            "chance@1": self.chance,
            "diversity": self.diversity,
            "KID": self.kid,
            "CMMD": self.cmmd,
        }


@dataclass(frozen=True)
class CocoResult:
    """The figures of a run: the method's name, the numbers of pictures, and the figures by every judge."""

    method: str
    references: int
    pictures: int
    unreadable: int
    failed: int
    judges: Mapping[str, JudgeFigures]


def build_result(
    options: CocoSettings, run: BenchmarkRun, features: Sequence[JudgeFeatures], unreadable: int
) -> CocoResult:
    """Compute the figures of a run, with intervals over references."""
    name = describe_method(options.method)
    pairs = zip(run.judges, features, strict=True)
    return CocoResult(
        method=name,
        references=len(features[0].square),
        pictures=len(run.tasks),
        unreadable=unreadable,
        failed=len(run.failed),
        judges={judge.name: summarize_judge(name, judge, some) for judge, some in pairs},
    )


def summarize_judge(name: str, judge: LoadedJudge, features: JudgeFeatures) -> JudgeFigures:
    """Compute a judge's figures of the method with that name."""
    places = torch.arange(len(features.square))
    conditions = {
        name: summarize_scores(score_images(features, features.images, features.owner), features.owner)
    } | {bound: summarize_scores(scores, places) for bound, scores in score_bounds(features).items()}
    method, floor, ceiling, itself = conditions.values()
    first = find_first_of_each(features.owner)
    images, references = features.images[first], features.square[features.owner[first]]
    return JudgeFigures(
        is_self=judge.is_self,
        conditions=conditions,
        normalized_similarity=normalize_score(
            method.similarity.mean, floor=floor.similarity.mean, ceiling=ceiling.similarity.mean
        ),
        normalized_text=None
        if method.text is None or floor.text is None or itself.text is None
        else normalize_score(method.text.mean, floor=floor.text.mean, ceiling=itself.text.mean),
        chance=chance_within(len(features.square), 1),
        diversity=measure_diversity(features.images, features.owner),
        kid=kid(images, references) if len(first) > 1 else None,
        cmmd=cmmd(images, references) if len(first) > 1 else None,
    )


def summarize_scores(scores: SimilarityScores, owner: Tensor) -> ConditionFigures:
    """Average the scores of one row."""

    def mean(values: Tensor) -> Interval:
        return average_over_references(values, owner)

    first, every = scores.first_caption, scores.all_captions
    return ConditionFigures(
        similarity=mean(scores.square),
        similarity_whole=mean(scores.whole),
        gap=mean(scores.gap),
        retrieval_1=mean(is_retrieved(scores.rank, 1)),
        retrieval_5=mean(is_retrieved(scores.rank, 5)),
        clip_score=None if first is None else mean(clip_score(first)),
        text=None if first is None else mean(first),
        text_mean=None if every is None else mean(every),
    )


# The page


def build_report(
    options: CocoSettings,
    images: Sequence[CaptionedImage],
    run: BenchmarkRun,
    features: Sequence[JudgeFeatures],
    result: CocoResult,
    folder: BenchmarkFolder,
) -> Report:
    """Build the page."""
    judge = run.judges[0]
    method = result.judges[judge.name].conditions[result.method]
    sections = [
        Section("Scores", CHOICES, [build_scores_table(one, result, options) for one in run.judges]),
        Section("All pictures together", SETS, [build_sets_table(result)]),
    ]
    if grid := build_grid(options, images, run, features[0], folder):
        sections.append(Section("Best, median and worst", f"By {judge.title}.", [grid]))
    figures = [KeyFigure(method.similarity, judge.title, "1 is the reference itself")]
    if method.clip_score is not None:
        comparison = "2.5 × the cosine to the first caption"
        figures.append(KeyFigure(method.clip_score, judge.text_title, comparison))
    return Report(
        title=f"COCO: {result.method}",
        lead=write_lead(f"{result.method} on {len(images):,} references", run, result.unreadable),
        sections=sections,
        facts=describe_run(
            options,
            run,
            {
                "λ": options.data.scale if options.method.adapter else "",
                "references": f"{len(images):,}, {options.data.samples} samples each",
            },
        ),
        overline="imprompt evaluate coco",
        key_figures=figures,
    )


def build_scores_table(judge: LoadedJudge, result: CocoResult, options: CocoSettings) -> Table:
    """Make the table of Table 1's columns by one judge, and of the other scores."""
    figures = result.judges[judge.name]
    columns: list[str | Column] = ["", judge.title, f"{judge.title}, whole", "gap to another"]
    columns += [Column("retrieval@1", percent=True, digits=1), Column("@5", percent=True, digits=1)]
    if judge.reads_text:
        columns = ["", judge.text_title, *columns[1:], "cosine, caption 1", "cosine, all captions"]
    body: list[list[Cell]] = []
    for name, row in figures.conditions.items():
        cells: list[Cell] = [row.similarity, row.similarity_whole, row.gap, row.retrieval_1, row.retrieval_5]
        body.append(
            [name, row.clip_score, *cells, row.text, row.text_mean] if judge.reads_text else [name, *cells]
        )
    paper = METHODS[options.method.name].paper
    if paper and judge.name == PAPER_JUDGE:
        body.insert(1, [PAPER_ROW, *paper, *[None] * (len(columns) - 3)])
    note = (
        f"{figures.normalized_similarity:.0%} of the way from another reference to a light copy; a blind "
        f"guess retrieves {figures.chance:.2%}."
    )
    return Table(columns, body, note=note, title=f"Judge: {judge.name}", strong=(0,))


def build_sets_table(result: CocoResult) -> Table:
    """Make the table of KID, CMMD and diversity by every judge."""
    columns: list[str | Column] = ["judge", Column("KID", digits=5), "CMMD", "diversity"]
    rows = [[name, one.kid, one.cmmd, one.diversity] for name, one in result.judges.items()]
    note = "Diversity is the mean distance, 1 - cosine, among one reference's samples."
    return Table(columns, rows, note=note)


def build_grid(
    options: CocoSettings,
    images: Sequence[CaptionedImage],
    run: BenchmarkRun,
    features: JudgeFeatures,
    folder: BenchmarkFolder,
) -> Grid | None:
    """Show the references with the best, the median and the worst images."""
    samples, count = options.data.samples, options.judging.shown
    groups = [
        rows for rows in split_by_owner(np.arange(len(run.tasks)), features.owner) if len(rows) == samples
    ]
    if not groups or not count:
        return None
    similarity = score_images(features, features.images, features.owner).square
    scores = [float(similarity[rows.tolist()].mean()) for rows in groups]
    rows = []
    for index in pick_best_median_worst(scores, count):
        tasks = [run.tasks[place] for place in groups[index].tolist()]
        image = images[int(features.owner[groups[index][0]])]
        pictures = [prepare_view(folder.picture_path(task.key), "drawn") for task in tasks]
        label = f"{scores[index]:.3f}  {image.captions[0]}"
        rows.append(PictureRow([prepare_view(image.path, "square"), *pictures], label))
    return Grid(["reference", *(f"sample {k + 1}" for k in range(samples))], rows)
