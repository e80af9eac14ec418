"""Measure one run: image prompt alone, with texts, with another's edges, on a fine-tuned base."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from imprompt.generation.base_parts import set_scheduler
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
from imprompt.lab.making.drawing import draw
from imprompt.lab.study.runs import RunResult, StudyRun, StudyScore
from imprompt.lab.study.settings import (
    ALONE,
    CONTROL,
    READ_ATTRIBUTES,
    SCALE,
    SHOWN,
    STYLE,
    TEXT,
    StudySettings,
    StudyTask,
)
from imprompt.lab.suite.images import SuiteCondition, generate_rows
from imprompt.lab.suite.scoring import (
    DRAWING,
    Galleries,
    Readings,
    measure_seed_distances,
    read_pictures,
    score_pictures,
)
from imprompt.lab.suite.structure import draw_line_pictures, measure_edge_gaps, measure_line_shares
from imprompt.lab.suite.subjects import CHANGES, Subject, sample_gallery, sample_subjects, select_suitable
from imprompt.runtime.devices import choose_device
from imprompt.training.mechanisms import Mechanism, load_mechanism

BASE_ALONE = "no image prompt"
"""The name in tables of the base alone, which is measured like a run."""

Pictures = Mapping[str, Sequence[Image.Image]]
"""A task's key → its images."""


@dataclass
class Study:
    """What is the same for all runs; slow parts are computed at their first use.

    Attributes:
        weights: folder of the embedded model
        settings: how images are generated
        judge: scores them; it is not the encoder that conditions
    """

    weights: Path
    settings: StudySettings
    judge: CharacterJudge
    _encoded: dict[tuple[Input, ...], list[ImageEmbeddings]] = field(default_factory=dict, init=False)

    @cached_property
    def subjects(self) -> list[Subject]:
        """Unseen characters, each at the place of its number."""
        return sample_subjects("combinations", self.settings.subjects)

    @cached_property
    def encoder(self) -> ImageEncoder:
        """The encoder that all runs were trained with."""
        return load_image_encoder(find_embedded_part(self.weights / "image_encoder"))

    def encode(self, takes: tuple[Input, ...]) -> list[ImageEmbeddings]:
        """Return the subjects' drawings as the inputs that a mechanism takes, encoded once for all runs."""
        if takes not in self._encoded:
            self._encoded[takes] = self._encode(takes)
        return self._encoded[takes]

    @torch.no_grad()
    def _encode(self, takes: tuple[Input, ...]) -> list[ImageEmbeddings]:
        pixels = self.encoder.pixels([subject.picture for subject in self.subjects])
        inputs = self.encoder.inputs(pixels, takes)
        blanks: dict[Input, Tensor] = {name: self.encoder.blank(name).float() for name in takes}
        return [
            ImageEmbeddings({name: value[row : row + 1].float() for name, value in inputs.items()}, blanks)
            for row in range(len(self.subjects))
        ]

    @cached_property
    def identities(self) -> Float[Tensor, "subjects identity"]:
        """The judge's embeddings of the subjects' drawings."""
        return read_pictures(self.judge, [subject.picture for subject in self.subjects]).embeddings

    @cached_property
    def galleries(self) -> Galleries:
        """Other drawings of each style, among which a reference is searched."""
        styles = sorted({subject.character.style for subject in self.subjects})
        count = self.settings.gallery - 1
        return Galleries(self.judge, {style: sample_gallery(style, count) for style in styles})

    @cached_property
    def controls(self) -> list[Image.Image]:
        """The edges of another subject's drawing, for each subject that is drawn with edges."""
        few = self.subjects[: self.settings.others]
        givers = [find_edge_giver(few, place) for place in range(len(few))]
        return [mini.edge_picture(giver.picture, giver.picture.width) for giver in givers]

    def list_tasks(self, run: StudyRun | None) -> list[StudyTask]:
        """List what is generated for a run, tasks of one base in a row; one scale if it reads no text."""
        scales = self.settings.text_scales if run is not None and run.reads_text else [SCALE]
        tasks = [
            *(StudyTask(ALONE, seed=seed) for seed in range(self.settings.seeds)),
            *(StudyTask(TEXT, scale, text) for text in CHANGES for scale in scales),
            StudyTask(CONTROL),
            StudyTask(STYLE),
        ]
        return [task for task in tasks if self.select(task)]

    def select(self, task: StudyTask) -> list[Subject]:
        """Return the subjects of a task."""
        if task.change is not None:
            return select_suitable(self.subjects, task.change)[: self.settings.text_subjects]
        if task.condition == ALONE:
            return self.subjects[: self.settings.diverse] if task.seed else self.subjects
        return self.subjects[: self.settings.others]

    def count_pictures(self, run: StudyRun | None) -> int:
        """Return how many images are generated for a run."""
        return sum(len(self.select(task)) for task in self.list_tasks(run))


def find_edge_giver(subjects: Sequence[Subject], place: int) -> Subject:
    """Return the next subject with all colored parts of this one; a bald one has no edges of hair."""
    subject, *others = [*subjects[place:], *subjects[:place]]
    colors = set(READ_ATTRIBUTES[CONTROL]).intersection(subject.character.attributes)
    return next((one for one in others if colors.issubset(one.character.attributes)), others[0])


def measure_run(study: Study, run: StudyRun | None, advance: Callable[[int], None]) -> RunResult:
    """Generate and score all images of a run; without a run, of the base alone.

    Raises:
        CheckpointError, AdapterMismatch: its file is damaged or does not fit
    """
    tasks = study.list_tasks(run)
    pictures: dict[str, list[Image.Image]] = {}
    for base, some in itertools.groupby(tasks, key=lambda task: task.base):
        pipe, mechanism = load_study_pipeline(study, run, base)
        pictures |= {task.key: generate_task(study, pipe, mechanism, task, advance) for task in some}
    return RunResult(score_tasks(study, name_run(run), tasks, pictures), select_for_page(tasks, pictures))


def select_for_page(tasks: Sequence[StudyTask], pictures: Pictures) -> Pictures:
    """Select the images that the page shows."""
    return {task.key: pictures[task.key][:SHOWN] for task in tasks if task.is_on_page}


def name_run(run: StudyRun | None) -> tuple[str, int]:
    """Return the mechanism and the seed of a run, or those of the base alone."""
    return (BASE_ALONE, 0) if run is None else (run.mechanism, run.seed)


def measure_drawings(study: Study) -> RunResult:
    """Score what a perfect mechanism would draw, which is the judge's own limit; see `measure_run`."""
    pictures: dict[str, list[Image.Image]] = {}
    tasks = [task for task in study.list_tasks(None) if task.condition != CONTROL and not task.seed]
    for task in tasks:
        subjects, change = study.select(task), task.change
        if change is not None:
            pictures[task.key] = [draw(change.apply(subject.character)) for subject in subjects]
        else:
            originals = [subject.picture for subject in subjects]
            pictures[task.key] = draw_line_pictures(originals) if task.condition == STYLE else originals
    return RunResult(score_tasks(study, (DRAWING, 0), tasks, pictures), pictures)


# Drawing


def load_study_pipeline(study: Study, run: StudyRun | None, base: str) -> tuple[Any, Mechanism | None]:
    """Return the pipeline that draws a condition, and the run's mechanism on it.

    If the mechanism trains the U-Net, its fine-tuned base is that U-Net with the style's low-rank change
    added, because its own weights cannot be exchanged.
    """
    trains_base = run is not None and run.trains_base
    style = study.settings.style if base == STYLE else None
    pipe: Any = mini.pipeline(style=None if trains_base else style, weights=study.weights)
    pipe.to(choose_device())
    set_scheduler(pipe, study.settings.scheduler)
    mechanism = None if run is None else load_mechanism(run.path, pipe)
    if style is not None and trains_base:
        mini.fine_tune(pipe, style, study.weights)
    if base == CONTROL:
        controlnet = mini.controlnet(weights=study.weights).to(pipe.device)
        pipe = mini.as_pipeline(StableDiffusionControlNetPipeline, pipe, controlnet=controlnet)
    return pipe, mechanism


def generate_task(
    study: Study, pipe: Any, mechanism: Mechanism | None, task: StudyTask, advance: Callable[[int], None]
) -> list[Image.Image]:
    """Generate one image of each subject of a task, with the same noise in every run and condition."""

    subjects = study.select(task)

    def call(rows: slice, arguments: dict[str, Any]) -> list[Image.Image]:
        if mechanism is None:
            return call_pipeline(pipe, arguments)
        encoded = study.encode(mechanism.takes)
        embeddings = [encoded[subject.number] for subject in subjects[rows]]
        return mechanism.generate(pipe, embeddings, task.scale, arguments)

    inputs = {"image": study.controls} if task.condition == CONTROL else {}
    condition = SuiteCondition(task.scale, task.change, task.seed)
    return generate_rows(call, subjects, condition, study.settings.paint, advance, **inputs)


# Scoring


def score_tasks(
    study: Study, name: tuple[str, int], tasks: Sequence[StudyTask], pictures: Pictures
) -> list[StudyScore]:
    """Score every image of the run of that name; images of further seeds are for diversity alone."""
    distances = measure_diversity(study, tasks, pictures)
    return [
        score
        for task in tasks
        if not task.seed
        for score in score_task(study, name, task, pictures[task.key], distances)
    ]


def measure_diversity(study: Study, tasks: Sequence[StudyTask], pictures: Pictures) -> dict[int, float]:
    """Return the distance among the images of several seeds of each such subject, by its number."""
    several = [pictures[task.key] for task in tasks if task.condition == ALONE]
    few = min(map(len, several))
    if len(several) < 2:
        return {}
    embeddings = [read_pictures(study.judge, some[:few]).embeddings for some in several]
    return dict(enumerate(measure_seed_distances(torch.stack(embeddings))))


def score_task(
    study: Study,
    name: tuple[str, int],
    task: StudyTask,
    pictures: Sequence[Image.Image],
    distances: Mapping[int, float],
) -> list[StudyScore]:
    """Score one image of each subject of a task."""
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
    edges = measure_edge_gaps(pictures, study.controls) if task.condition == CONTROL else None
    lines = measure_line_shares(pictures).tolist() if task.condition == STYLE else None
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
