"""What is shown: references beside their pictures at several scales."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imprompt.evaluation.asking import Asking
from imprompt.evaluation.pictures import Drawing, HeldOut
from imprompt.evaluation.report import Grid, best_median_worst, write_picture
from imprompt.evaluation.sampling import Condition, Pictures
from imprompt.evaluation.scoring import PROMPTED, Score, by_concept, under
from imprompt.evaluation.sheets import Row, titled_sheet

CONTACTS = 24
"""Concepts on the contact sheet: the first ones by hash, chosen by nobody."""

EXTREMES = 4
"""Concepts that are shown as the best, as many around the median, as many as the worst."""

FACES = Asking(("face",))
"""One text for all that is shown: what differs beside it is the image prompt."""

EXHIBITS = (
    Condition("scale 0", 0.0),
    Condition("scale 0.5", 0.5),
    Condition("scale 1", 1.0),
    Condition(f"scale 1, “{FACES}”", 1.0, FACES),
)
"""What is shown beside each reference, under these titles."""

FEATURED = (
    "popcorn", "tropical fish", "mouse face", "violin", "fire engine", "two hearts", "volcano", "penguin",
)  # fmt: skip
"""Concepts of the README's figure: chosen, to show different kinds of things."""


class Exhibited(NamedTuple):
    """References to be shown at several scales: on the contact sheet, and in the README's figure."""

    contacts: list[Drawing]
    featured: list[Drawing]


def exhibited_references(held_out: HeldOut, references: Sequence[Drawing]) -> Exhibited:
    """The first references, chosen by nobody, and the featured ones, chosen."""
    known = {drawing.concept for drawing in held_out.drawings}
    featured = [held_out.reference(name) for name in FEATURED if name in known]
    return Exhibited(list(references[:CONTACTS]), featured)


def write_exhibits(held_out: HeldOut, exhibited: Exhibited, shown: Sequence[Pictures], output: Path) -> Grid:
    """Write the contact sheet, with names, and the figure, without; return the sheet for the page."""
    titles = ["image prompt", *(condition.name for condition in EXHIBITS)]
    rows = [
        Row([held_out.on_white(reference), *(pictures[index][0] for pictures in shown)], label_of(reference))
        for index, reference in enumerate(exhibited.contacts + exhibited.featured)
    ]
    contacts, featured = rows[: len(exhibited.contacts)], rows[len(exhibited.contacts) :]
    write_picture(titled_sheet(titles, contacts, blocks=3), output / "contact-sheet.png")
    if featured:
        figure = titled_sheet(titles, [Row(row.pictures) for row in featured], blocks=2)
        write_picture(figure, output / "figure.png")
    return Grid(titles, contacts)


def extremes(
    held_out: HeldOut, references: Sequence[Drawing], pictures: Pictures, scores: Sequence[Score]
) -> list[Grid]:
    """The concepts with the largest gaps, those around the median, and those with the smallest."""
    gaps = by_concept(under(scores, PROMPTED), lambda score: score.gap)
    titles = ["image prompt", *(f"seed {seed}" for seed in range(len(pictures[0])))]
    rows = [
        Row(
            [held_out.on_white(references[place]), *pictures[place]],
            f"{label_of(references[place])}: gap {gaps[references[place].concept]:.2f}".replace("-", "−"),
        )
        for place in best_median_worst([gaps[reference.concept] for reference in references], EXTREMES)
    ]
    if len(rows) < 3 * EXTREMES:
        return [Grid(titles, rows, title="From the largest gap to the smallest")]
    names = ("The largest gaps", "Around the median", "The smallest gaps")
    parts = [rows[start : start + EXTREMES] for start in range(0, 3 * EXTREMES, EXTREMES)]
    return [Grid(titles, part, title=name) for name, part in zip(names, parts, strict=True)]


def label_of(reference: Drawing) -> str:
    """What a reference shows, and in which style."""
    return f"{reference.concept} ({reference.style})"


def write_every_concept(
    held_out: HeldOut, references: Sequence[Drawing], pictures: Pictures, output: Path
) -> None:
    """Every reference with all its pictures."""
    rows = [
        Row([held_out.on_white(reference), *several])
        for reference, several in zip(references, pictures, strict=True)
    ]
    write_picture(
        titled_sheet([""] * len(rows[0].pictures), rows, blocks=5, cell=64), output / "every-concept.png"
    )
