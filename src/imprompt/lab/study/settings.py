"""What the study draws of every run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from imprompt.lab.judge import LABELS
from imprompt.lab.making.vocabulary import COLORS, PARTS
from imprompt.lab.suite.painting import PaintSettings
from imprompt.lab.suite.subjects import CHANGES, TextChange

ALONE, TEXT, CONTROL, STYLE = "image prompt alone", "with text", "with edges", "fine-tuned base"

SCALE = 1.0
"""The scale that every mechanism was trained with; table 1 is at this one."""

READ_ATTRIBUTES: Mapping[str, Collection[str]] = {ALONE: LABELS, TEXT: LABELS, CONTROL: COLORS, STYLE: PARTS}
"""The attributes that count: another character's edges leave the colors free, a line drawing has none."""


@dataclass(frozen=True)
class StudySettings:
    """How much is drawn and how; the same for every mechanism.

    Attributes:
        subjects: characters drawn from the image prompt alone
        gallery: among how many drawings of its style a reference is to be found, itself included
        seeds: pictures of each of the first `diverse` subjects, for diversity
        diverse: see `seeds`
        text_subjects: characters with each text
        scales: with text, beside `SCALE`; by mechanisms that read text
        others: characters with another one's edges, and on the fine-tuned base; two at least
        style: of the fine-tuned base
        paint: how pictures are made
    """

    subjects: int = 96
    gallery: int = 200
    seeds: int = 3
    diverse: int = 16
    text_subjects: int = 24
    scales: tuple[float, ...] = (0.5, 0.75, 1.5)
    others: int = 48
    style: str = "lines"
    paint: PaintSettings = field(default_factory=lambda: PaintSettings(steps=20))

    @property
    def text_scales(self) -> list[float]:
        """All scales with text, from the smallest."""
        return sorted({SCALE, *self.scales})


SMALL = StudySettings(24, 40, 2, 8, 8, (0.5,), 12, paint=PaintSettings(steps=12))
"""For a first look."""


@dataclass(frozen=True)
class Task:
    """One picture of each of some subjects.

    Attributes:
        condition: `ALONE`, `TEXT`, `CONTROL` or `STYLE`
        scale: what the mechanism is given as `scale`
        text: the name of a text in `CHANGES`, "" for none
        seed: of the noise
    """

    condition: str
    scale: float = SCALE
    text: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        """A name that no other task of a run has."""
        return f"{self.condition}, {self.text}, scale {self.scale:g}, seed {self.seed}"

    @property
    def change(self) -> TextChange | None:
        """What the text asks for."""
        return CHANGES[self.text] if self.text else None

    @property
    def base(self) -> str:
        """The condition whose pipeline draws it: text is for the plain base."""
        return ALONE if self.condition == TEXT else self.condition
