"""What the study generates for every run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from imprompt.lab.making.labels import LABELS
from imprompt.lab.making.vocabulary import COLORS, PARTS
from imprompt.lab.suite.images import ImageSettings
from imprompt.lab.suite.subjects import CHANGES, TextChange

ALONE, TEXT, CONTROL, STYLE = "image prompt alone", "with text", "with edges", "fine-tuned base"

SCALE = 1.0
"""The scale of every mechanism's training, and of table 1."""

SHOWN = 6
"""Number of characters in a grid of the page, which are the first ones."""

READ_ATTRIBUTES: Mapping[str, Collection[str]] = {ALONE: LABELS, TEXT: LABELS, CONTROL: COLORS, STYLE: PARTS}
"""The attributes that count: another's edges leave the colors free, a line drawing has no colors."""


@dataclass(frozen=True)
class StudySettings:
    """How much is generated and how; the same for every mechanism.

    Attributes:
        subjects: characters with the image prompt alone
        gallery: number of drawings of its style among which a reference is searched, itself included
        seeds: images of each of the first `diverse` subjects, for diversity
        diverse: see `seeds`
        text_subjects: characters with each text
        scales: with text, in addition to `SCALE`; for mechanisms that read text
        others: characters with another one's edges, and on the fine-tuned base; at least two
        style: of the fine-tuned base
        scheduler: name of the sampler; eight steps of DPM++ 2M lose nothing here (bench/few_steps.py)
        paint: how images are generated
    """

    subjects: int = 96
    gallery: int = 200
    seeds: int = 3
    diverse: int = 16
    text_subjects: int = 24
    scales: tuple[float, ...] = (0.5, 0.75, 1.5)
    others: int = 48
    style: str = "lines"
    scheduler: str = "dpm++_2m"
    paint: ImageSettings = field(default_factory=lambda: ImageSettings(steps=8))

    @property
    def text_scales(self) -> list[float]:
        """All scales with text, in rising order."""
        return sorted({SCALE, *self.scales})


SMALL = StudySettings(24, 40, 2, 8, 8, (0.5,), 12, paint=ImageSettings(steps=6))
"""Settings for a first look."""


@dataclass(frozen=True)
class StudyTask:
    """One image of each of some subjects.

    Attributes:
        condition: `ALONE`, `TEXT`, `CONTROL` or `STYLE`
        scale: the mechanism's `scale`
        text: the name of a text in `CHANGES`, "" for none
        seed: of the noise
    """

    condition: str
    scale: float = SCALE
    text: str = ""
    seed: int = 0

    @property
    def is_on_page(self) -> bool:
        """Whether the page has a grid of its images."""
        return self.scale == SCALE and not self.seed

    @property
    def key(self) -> str:
        """A name that is unique among a run's tasks."""
        return f"{self.condition}, {self.text}, scale {self.scale:g}, seed {self.seed}"

    @property
    def change(self) -> TextChange | None:
        """What the text asks for."""
        return CHANGES[self.text] if self.text else None

    @property
    def base(self) -> str:
        """The condition whose pipeline draws it: text is drawn by the plain base."""
        return ALONE if self.condition == TEXT else self.condition
