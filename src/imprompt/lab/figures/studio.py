"""Where the figures' pictures are made: characters never seen, each with a partner; a call makes a column."""

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import UnknownModel
from imprompt.generation.pipeline_results import call_pipeline
from imprompt.lab.figures.figure import Values
from imprompt.lab.figures.measures import Pictures, differing_names, read_shares
from imprompt.lab.making.characters import sample_character
from imprompt.lab.making.drawing import draw
from imprompt.lab.making.vocabulary import ATTRIBUTES
from imprompt.lab.suite.painting import Condition, PaintSettings, SuiteModels, paint_groups
from imprompt.lab.suite.scoring import kept_names, read_pictures
from imprompt.lab.suite.subjects import Subject, TextChange, sample_subjects
from imprompt.reference import Reference

SEEDS = 4
"""How many pictures of one image prompt are compared with each other."""

CANDIDATES = 40
"""Characters among which the most unlike one becomes a partner."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class FigureSettings:
    """How many pictures are made, and how.

    Attributes:
        subjects: characters behind every number
        shown: rows of a figure
        paint: how pictures are made
    """

    subjects: int = 48
    shown: int = 6
    paint: PaintSettings = field(default_factory=PaintSettings)


class Studio:
    """The models, the characters, and what several figures use."""

    def __init__(
        self, models: SuiteModels, settings: FigureSettings, changes: Sequence[TextChange] = ()
    ) -> None:
        self.models, self.settings = models, settings
        self.subjects = sample_suited(changes, settings.subjects)
        self.partners = [sample_partner(subject) for subject in self.subjects]
        self.drawings = [self.fit(subject.picture) for subject in self.subjects]
        self.partner_drawings = [self.fit(partner.picture) for partner in self.partners]

    @property
    def size(self) -> int:
        """Width and height of the base's pictures, px."""
        pipe = cast(Any, self.models.pipe)
        return pipe.unet.config.sample_size * pipe.vae_scale_factor

    def fit(self, picture: Image.Image) -> Image.Image:
        """A drawing in the base's size."""
        return picture.resize((self.size, self.size), Image.Resampling.LANCZOS)

    @cached_property
    def alone(self) -> list[Image.Image]:
        """Pictures of the image prompts alone, λ = 1, from the seed of all figures."""
        return self.paint(self.prompts())

    @cached_property
    def seeds(self) -> list[list[Image.Image]]:
        """The same from `SEEDS` seeds, that one first."""
        return [self.alone, *(self.paint(self.prompts(), seed=seed) for seed in range(1, SEEDS))]

    @cached_property
    def unprompted(self) -> list[Image.Image]:
        """Pictures without image prompt or text: the floor of most numbers."""
        return self.paint()

    def prompts(
        self, subjects: Sequence[Subject] | None = None, *, scale: float = 1.0, **options: Any
    ) -> list[Reference]:
        """Each row's image prompt: of its own character, or of its partner."""
        subjects = self.subjects if subjects is None else subjects
        return [Reference(subject.picture, scale=scale, **options) for subject in subjects]

    def paint(
        self,
        *image_prompts: Sequence[Reference],
        change: TextChange | None = None,
        pipe: Any = None,
        adapter: ImagePromptAdapter | None = None,
        seed: int = 0,
        **inputs: Any,
    ) -> list[Image.Image]:
        """One picture for each row; with the same seed, a row has the same noise in all columns.

        Args:
            *image_prompts: as many as act together, each with a reference for every row; none: the base
            change: the text
            pipe: another pipeline than the plain one
            adapter: another adapter than the first one
            seed: which noise
            **inputs: more for the pipeline; a list has a value for every row
        """
        pipe = self.models.pipe if pipe is None else pipe
        adapter = self.models.adapter if adapter is None else adapter
        places = {subject.number: row for row, subject in enumerate(self.subjects)}

        def call(group: Sequence[Subject], arguments: dict[str, Any]) -> list[Image.Image]:
            rows = [places[subject.number] for subject in group]
            prompts = [[several[row] for row in rows] for several in image_prompts]
            shown: AbstractContextManager = adapter.references(*prompts) if prompts else nullcontext()
            with shown:
                return call_pipeline(pipe, arguments | pick_rows(inputs, rows))

        with adapter.attach(pipe):
            condition = Condition(1.0, change, seed)
            return paint_groups(call, self.subjects, condition, self.settings.paint)

    def kept(self, pictures: Pictures, change: TextChange | None = None) -> Values:
        """Share of each image prompt's attributes, but for what the text changes, that the judge reads."""
        names = [kept_names(subject, change) for subject in self.subjects]
        return read_shares(read_pictures(self.models.judge, pictures), self.subjects, names)

    def asked(self, pictures: Pictures, change: TextChange) -> Values:
        """1 where the judge reads what the text asks for, 0 elsewhere."""
        words = read_pictures(self.models.judge, pictures).words[change.attribute]
        return np.array([float(word == change.word) for word in words])

    def taken(
        self,
        pictures: Pictures,
        among: Sequence[str] = ATTRIBUTES,
        owners: Sequence[Subject] | None = None,
    ) -> Values:
        """Where a character and its partner differ: share read as the owner's, by default the character's."""
        pairs = zip(self.subjects, self.partners, strict=True)
        names = [differing_names(one.character, other.character, among) for one, other in pairs]
        readings = read_pictures(self.models.judge, pictures)
        return read_shares(readings, self.subjects if owners is None else owners, names)


def pick_rows(inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """A pipeline's further inputs for these rows; what is no list is for all."""
    return {
        name: [value[row] for row in rows] if isinstance(value, list) else value
        for name, value in inputs.items()
    }


def sample_suited(changes: Sequence[TextChange], count: int) -> list[Subject]:
    """The first characters of unseen combinations of whom every one of the texts asks something new."""
    several = count
    while True:
        subjects = sample_subjects("combinations", several)
        suited = [one for one in subjects if all(change.suits(one.character) for change in changes)]
        if len(suited) >= count:
            return suited[:count]
        several *= 2


def sample_partner(subject: Subject) -> Subject:
    """Another unseen character of the same style, as unlike as one of `CANDIDATES` is."""
    style, rng = subject.character.style, random.Random(f"partner/{subject.number}")
    candidates = [sample_character(rng, subject.split, style) for _ in range(CANDIDATES)]
    best = max(candidates, key=lambda other: len(differing_names(subject.character, other, ATTRIBUTES)))
    return replace(subject, character=best, picture=draw(best))


def require(part: Part | None, name: str) -> Part:
    """A part that the figures cannot do without.

    Raises:
        UnknownModel: it is not there
    """
    if part is None:
        raise UnknownModel(f"the figures need the embedded model's {name}; give it to `SuiteModels`")
    return part
