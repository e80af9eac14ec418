"""The images of the figures: unseen characters, each with a partner; a call generates a column."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import UnknownModel
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.lab.figures.figure import Values
from imprompt.lab.figures.measures import Pictures, list_differences, read_shares
from imprompt.lab.making.characters import sample_character
from imprompt.lab.making.drawing import draw
from imprompt.lab.making.vocabulary import ATTRIBUTES
from imprompt.lab.suite.images import ImageSettings, SuiteCondition, SuiteModels, generate_rows
from imprompt.lab.suite.scoring import list_kept_attributes, read_pictures
from imprompt.lab.suite.subjects import Subject, TextChange, sample_subjects
from imprompt.reference import Reference

SEEDS = 4
"""The number of images of one image prompt that are compared with each other."""

CANDIDATES = 40
"""The number of characters of which the least similar one becomes a partner."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class FigureSettings:
    """How many images are generated, and how.

    Attributes:
        subjects: characters for every number
        shown: rows of a figure
        paint: how images are generated
    """

    subjects: int = 48
    shown: int = 6
    paint: ImageSettings = field(default_factory=ImageSettings)


class FigureImages:
    """The models, the characters, and the images that several figures use."""

    def __init__(self, models: SuiteModels, settings: FigureSettings, subjects: Sequence[Subject]) -> None:
        self.models, self.settings, self.subjects = models, settings, subjects
        self.drawings = [self.fit(subject.picture) for subject in subjects]

    @cached_property
    def partners(self) -> list[Subject]:
        """Each character's second one."""
        return [sample_partner(subject) for subject in self.subjects]

    @cached_property
    def partner_drawings(self) -> list[Image.Image]:
        """The drawings of the second characters."""
        return [self.fit(partner.picture) for partner in self.partners]

    @property
    def size(self) -> int:
        """Width and height of the base's images, px."""
        pipe = cast(Any, self.models.pipe)
        return pipe.unet.config.sample_size * pipe.vae_scale_factor

    def fit(self, picture: Image.Image) -> Image.Image:
        """Resize a drawing to the base's size."""
        return picture.resize((self.size, self.size), Image.Resampling.LANCZOS)

    @cached_property
    def alone(self) -> list[Image.Image]:
        """Images of the image prompts alone, λ = 1, with the seed of all figures."""
        return self.generate(self.build_prompts())

    @cached_property
    def seeds(self) -> list[list[Image.Image]]:
        """Images of the image prompts alone with `SEEDS` seeds, the seed of all figures first."""
        return [self.alone, *(self.generate(self.build_prompts(), seed=seed) for seed in range(1, SEEDS))]

    @cached_property
    def unprompted(self) -> list[Image.Image]:
        """Images without image prompt or text: the floor of most numbers."""
        return self.generate()

    def build_prompts(
        self, subjects: Sequence[Subject] | None = None, *, scale: float = 1.0, **options: Any
    ) -> list[Reference]:
        """Return each row's image prompt: its own character's, or that of `subjects`."""
        subjects = self.subjects if subjects is None else subjects
        return [Reference(subject.picture, scale=scale, **options) for subject in subjects]

    def generate(
        self,
        *image_prompts: Sequence[Reference],
        change: TextChange | None = None,
        pipe: Any = None,
        adapter: ImagePromptAdapter | None = None,
        seed: int = 0,
        **inputs: Any,
    ) -> list[Image.Image]:
        """Generate one image for each row; with the same seed, a row has the same noise in all columns.

        Args:
            *image_prompts: all that act together, each with a reference for every row; none: the base alone
            change: the text's change
            pipe: another pipeline than the plain one
            adapter: another adapter than the first one
            seed: of the noise
            **inputs: further arguments of the pipeline; a list has a value for every row
        """
        pipe = self.models.pipe if pipe is None else pipe
        adapter = self.models.adapter if adapter is None else adapter

        def call(rows: slice, arguments: dict[str, Any]) -> list[Image.Image]:
            prompts = [list(several[rows]) for several in image_prompts]
            with adapter.use(*prompts) if prompts else nullcontext():
                return call_pipeline(pipe, arguments)

        with adapter.attach(pipe):
            condition = SuiteCondition(1.0, change, seed)
            return generate_rows(call, self.subjects, condition, self.settings.paint, **inputs)

    def measure_kept(self, pictures: Pictures, change: TextChange | None = None) -> Values:
        """Return the share of each image prompt's attributes, without the text's, that the judge reads."""
        names = [list_kept_attributes(subject, change) for subject in self.subjects]
        return read_shares(read_pictures(self.models.judge, pictures), self.subjects, names)

    def measure_present(self, pictures: Pictures, change: TextChange) -> Values:
        """Return 1 where the judge reads what the text asks for, 0 elsewhere."""
        words = read_pictures(self.models.judge, pictures).words[change.attribute]
        return np.array([float(word == change.word) for word in words])

    def measure_ownership(
        self,
        pictures: Pictures,
        among: Sequence[str] = ATTRIBUTES,
        owners: Sequence[Subject] | None = None,
    ) -> Values:
        """Return the share of attributes that differ from the partner's and are read as the owner's.

        Args:
            pictures: one for each row
            among: the attributes that count
            owners: by default the row's own character
        """
        pairs = zip(self.subjects, self.partners, strict=True)
        names = [list_differences(one.character, other.character, among) for one, other in pairs]
        readings = read_pictures(self.models.judge, pictures)
        return read_shares(readings, self.subjects if owners is None else owners, names)


def sample_suitable(changes: Sequence[TextChange], count: int) -> list[Subject]:
    """Return the first characters of unseen combinations of which every text asks something new."""
    several = count
    while True:
        subjects = sample_subjects("combinations", several)
        suited = [one for one in subjects if all(change.suits(one.character) for change in changes)]
        if len(suited) >= count:
            return suited[:count]
        several *= 2


def sample_partner(subject: Subject) -> Subject:
    """Return another unseen character of the same style, the least similar one of `CANDIDATES`."""
    style, rng = subject.character.style, random.Random(f"partner/{subject.number}")
    candidates = [sample_character(rng, subject.split, style) for _ in range(CANDIDATES)]
    best = max(candidates, key=lambda other: len(list_differences(subject.character, other, ATTRIBUTES)))
    return replace(subject, character=best, picture=draw(best))


def require(part: Part | None, name: str) -> Part:
    """Return a part that the figures need.

    Raises:
        UnknownModel: it is None
    """
    if part is None:
        raise UnknownModel(f"the figures need the embedded model's {name}; give it to `SuiteModels`")
    return part
