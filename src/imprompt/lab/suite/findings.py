"""What the suite measures and finds: plain data that the page, the terminal and summary.json show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imprompt.lab.making.characters import Split
from imprompt.lab.suite.painting import PaintSettings
from imprompt.report import Interval

SCALES = (0.0, 0.5, 1.0)
"""λ without text."""

CURVE_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""λ with text."""

FLOOR, CODEC, DRAWING = "another reference", "through the autoencoder", "the drawing itself"
"""What stands beside the pictures: the floor, the ceiling, and the judge's own accuracy."""


def name_scale(scale: float) -> str:
    """A condition's name."""
    return f"λ = {scale:g}"


@dataclass(frozen=True)
class SuiteSettings:
    """How much is measured.

    Attributes:
        subjects: characters of each split
        text_subjects: characters of unseen combinations with each text
        gallery: among how many drawings of its style a reference is to be found, itself included
        seeds: pictures of each of the first `diverse` subjects, for diversity
        diverse: see `seeds`
        paint: how pictures are made
    """

    subjects: int = 120
    text_subjects: int = 48
    gallery: int = 200
    seeds: int = 4
    diverse: int = 24
    paint: PaintSettings = field(default_factory=PaintSettings)


SMALL = SuiteSettings(24, 12, 40, 2, 8)
"""A minute or two on two cores."""


@dataclass(frozen=True)
class SplitFindings:
    """What was found on one split.

    Attributes:
        kept, all_kept, found: condition → share of attributes kept, of pictures that kept all, of references
            that are found first
        attributes: attribute → (share at λ = 1, share in the drawing itself, subjects)
    """

    kept: Mapping[str, Interval]
    all_kept: Mapping[str, Interval]
    found: Mapping[str, Interval]
    attributes: Mapping[str, tuple[float, float, int]]


@dataclass(frozen=True)
class TextFindings:
    """What was found with one text, at every λ of `CURVE_SCALES`.

    Attributes:
        text: the prompt
        subjects: how many
        asked: share of pictures in which the judge reads what was asked for
        kept: share of the other attributes kept
    """

    text: str
    subjects: int
    asked: Sequence[Interval]
    kept: Sequence[Interval]

    @property
    def best(self) -> int:
        """The place of the λ at which the product of both is largest."""
        products = [one.mean * other.mean for one, other in zip(self.asked, self.kept, strict=True)]
        return products.index(max(products))


@dataclass(frozen=True)
class Findings:
    """All figures of a run; `copies` of training drawings are unknown where these are not at hand."""

    name: str
    tokens: int
    settings: SuiteSettings
    splits: Mapping[Split, SplitFindings]
    texts: Mapping[str, TextFindings]
    diversity: Interval
    copies: Mapping[str, Interval] | None
    seconds: float
    against: "Comparison | None" = None


@dataclass(frozen=True)
class Comparison:
    """This report minus an earlier one, whose adapter is `name`: measure → paired difference."""

    name: str
    differences: Mapping[str, Interval]
