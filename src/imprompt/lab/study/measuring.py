"""One run, measured: from the image prompt alone, with texts, with another's edges, on a fine-tuned base."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt import mini
from imprompt.checkpoint import find_embedded_part
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.generation.pipeline_results import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.inputs.encoder import load_image_encoder
from imprompt.lab.making.drawing import draw
from imprompt.lab.study.runs import RunResult, StudyRun, StudyScore
from imprompt.lab.study.settings import (
    ALONE,
    CONTROL,
    READ_ATTRIBUTES,
    SCALE,
    STYLE,
    TEXT,
    StudySettings,
    Task,
)
from imprompt.lab.suite.findings import DRAWING
from imprompt.lab.suite.painting import Condition, paint_groups
from imprompt.lab.suite.scoring import Galleries, Readings, read_pictures, score_pictures, seed_distances
from imprompt.lab.suite.structure import edge_gaps, line_pictures, line_shares
from imprompt.lab.suite.subjects import CHANGES, Subject, sample_gallery, sample_subjects, suited
from imprompt.training.mechanisms import Mechanism, load_mechanism

BASE_ALONE = "no image prompt"
"""What tables call the base alone, which is measured like a run."""

Pictures = Mapping[str, Sequence[Image.Image]]
"""A task's key → its pictures."""


@dataclass
class Study:
    """What is the same for all runs; what takes time is made at its first use.

    Attributes:
        weights: folder of the embedded model
        settings: how pictures are made
        judge: scores them; not the encoder that conditions
    """

    weights: Path
    settings: StudySettings
    judge: CharacterJudge

    @cached_property
    def subjects(self) -> list[Subject]:
        """Unseen characters, each at the place of its number."""
        return sample_subjects("combinations", self.settings.subjects)

    @cached_property
    def embeddings(self) -> list[ImageEmbeddings]:
        """Of the subjects' drawings, by the encoder that all runs were trained with."""
        encoder = load_image_encoder(find_embedded_part(self.weights / "image_encoder"))
        blank = encoder.blank("image_embedding").float()
        pixels = encoder.pixels([subject.picture for subject in self.subjects])
        rows = encoder.encode(pixels).float().split(1)
        return [ImageEmbeddings({"image_embedding": row}, {"image_embedding": blank}) for row in rows]

    @cached_property
    def identities(self) -> Float[Tensor, "subjects identity"]:
        """What the judge makes of the subjects' drawings."""
        return read_pictures(self.judge, [subject.picture for subject in self.subjects]).embeddings

    @cached_property
    def galleries(self) -> Galleries:
        """Other drawings of each style, among which a reference is to be found."""
        styles = sorted({subject.character.style for subject in self.subjects})
        count = self.settings.gallery - 1
        return Galleries(self.judge, {style: sample_gallery(style, count) for style in styles})

    @cached_property
    def controls(self) -> list[Image.Image]:
        """For each subject that is drawn with edges, those of another one's drawing."""
        few = self.subjects[: self.settings.others]
        givers = [find_edge_giver(few, place) for place in range(len(few))]
        return [mini.edge_picture(giver.picture, giver.picture.width) for giver in givers]

    def tasks(self, run: StudyRun | None) -> list[Task]:
        """What is drawn of a run, those of one base in a row; what reads no text has no use for scales."""
        scales = self.settings.text_scales if run is not None and run.reads_text else [SCALE]
        tasks = [
            *(Task(ALONE, seed=seed) for seed in range(self.settings.seeds)),
            *(Task(TEXT, scale, text) for text in CHANGES for scale in scales),
            Task(CONTROL),
            Task(STYLE),
        ]
        return [task for task in tasks if self.select(task)]

    def select(self, task: Task) -> list[Subject]:
        """The subjects of a task."""
        if task.change is not None:
            return suited(self.subjects, task.change)[: self.settings.text_subjects]
        if task.condition == ALONE:
            return self.subjects[: self.settings.diverse] if task.seed else self.subjects
        return self.subjects[: self.settings.others]

    def count_pictures(self, run: StudyRun | None) -> int:
        """How many are drawn of a run."""
        return sum(len(self.select(task)) for task in self.tasks(run))


def find_edge_giver(subjects: Sequence[Subject], place: int) -> Subject:
    """The next subject that draws all that has a color here: a bald one's edges leave no room for hair."""
    subject, *others = [*subjects[place:], *subjects[:place]]
    colors = set(READ_ATTRIBUTES[CONTROL]).intersection(subject.character.attributes)
    return next((one for one in others if colors.issubset(one.character.attributes)), others[0])


def measure_run(study: Study, run: StudyRun | None, advance: Callable[[int], None]) -> RunResult:
    """Draw and score everything of a run; without a run, of the base alone.

    Raises:
        CheckpointError, AdapterMismatch: its file is not what it says
    """
    tasks = study.tasks(run)
    pictures: dict[str, list[Image.Image]] = {}
    for base, some in itertools.groupby(tasks, key=lambda task: task.base):
        pipe, mechanism = load_pipeline(study, run, base)
        pictures |= {task.key: paint_task(study, pipe, mechanism, task, advance) for task in some}
    return RunResult(score_tasks(study, name_run(run), tasks, pictures), pictures)


def name_run(run: StudyRun | None) -> tuple[str, int]:
    """A run's mechanism and seed of training; those of the base alone."""
    return (BASE_ALONE, 0) if run is None else (run.mechanism, run.seed)


def measure_drawings(study: Study) -> RunResult:
    """As `measure_run`, of what a perfect mechanism would draw: the judge's own limit."""
    pictures: dict[str, list[Image.Image]] = {}
    tasks = [task for task in study.tasks(None) if task.condition != CONTROL and not task.seed]
    for task in tasks:
        subjects, change = study.select(task), task.change
        if change is not None:
            pictures[task.key] = [draw(change.apply(subject.character)) for subject in subjects]
        else:
            originals = [subject.picture for subject in subjects]
            pictures[task.key] = line_pictures(originals) if task.condition == STYLE else originals
    return RunResult(score_tasks(study, (DRAWING, 0), tasks, pictures), pictures)


# Drawing


def load_pipeline(study: Study, run: StudyRun | None, base: str) -> tuple[Any, Mechanism | None]:
    """The pipeline that draws a condition, with the run's mechanism on it.

    The fine-tuned base of a mechanism that trains the U-Net is that U-Net with the style's low-rank change
    added: its own weights cannot be exchanged.
    """
    trains_base = run is not None and run.trains_base
    style = study.settings.style if base == STYLE else None
    pipe: Any = mini.pipeline(style=None if trains_base else style, weights=study.weights)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    mechanism = None if run is None else load_mechanism(run.path, pipe)
    if style is not None and trains_base:
        mini.fine_tune(pipe, style, study.weights)
    if base == CONTROL:
        controlnet = mini.controlnet(weights=study.weights).to(pipe.device)
        pipe = mini.as_pipeline(StableDiffusionControlNetPipeline, pipe, controlnet=controlnet)
    return pipe, mechanism


def paint_task(
    study: Study, pipe: Any, mechanism: Mechanism | None, task: Task, advance: Callable[[int], None]
) -> list[Image.Image]:
    """One picture of each subject of a task, from the same noise in every run and condition."""

    def call(group: Sequence[Subject], arguments: dict[str, Any]) -> list[Image.Image]:
        if mechanism is None:
            return call_pipeline(pipe, arguments)
        embeddings = [study.embeddings[subject.number] for subject in group]
        return mechanism.pictures(pipe, embeddings, task.scale, arguments)

    subjects = study.select(task)
    edges = study.controls if task.condition == CONTROL else []
    condition = Condition(task.scale, task.change, task.seed)
    return paint_groups(call, subjects, condition, study.settings.paint, advance, edges=edges)


# Scoring


def score_tasks(
    study: Study, name: tuple[str, int], tasks: Sequence[Task], pictures: Pictures
) -> list[StudyScore]:
    """Score every picture of the run of that name; those from further seeds serve diversity alone."""
    distances = measure_diversity(study, tasks, pictures)
    return [
        score
        for task in tasks
        if not task.seed
        for score in score_task(study, name, task, pictures[task.key], distances)
    ]


def measure_diversity(study: Study, tasks: Sequence[Task], pictures: Pictures) -> dict[int, float]:
    """The number of each subject that was drawn from several seeds → the distance among its pictures."""
    several = [pictures[task.key] for task in tasks if task.condition == ALONE]
    few = min(map(len, several))
    if len(several) < 2:
        return {}
    embeddings = [read_pictures(study.judge, some[:few]).embeddings for some in several]
    return dict(enumerate(seed_distances(torch.stack(embeddings))))


def score_task(
    study: Study,
    name: tuple[str, int],
    task: Task,
    pictures: Sequence[Image.Image],
    distances: Mapping[int, float],
) -> list[StudyScore]:
    """Score one picture of each subject of a task."""
    subjects = study.select(task)
    scores = score_pictures(
        subjects,
        read_pictures(study.judge, pictures),
        Readings({}, study.identities[[subject.number for subject in subjects]]),
        condition=task.condition,
        scale=task.scale,
        change=task.change,
        galleries=study.galleries if task.condition == ALONE else None,
        attributes=READ_ATTRIBUTES[task.condition],
    )
    edges = edge_gaps(pictures, study.controls) if task.condition == CONTROL else None
    lines = line_shares(pictures) if task.condition == STYLE else None
    diversity = distances if task.condition == ALONE else {}
    return [
        StudyScore(
            **asdict(score),
            mechanism=name[0],
            seed=name[1],
            text=task.text,
            diversity=diversity.get(score.subject),
            edges=edges[place] if edges else None,
            lines=lines[place] if lines else None,
        )
        for place, score in enumerate(scores)
    ]
