"""The images that are shown with the figures: the README's first picture, and a contact sheet.

A hash chooses the characters, not the quality of the images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from PIL import Image

from imprompt import mini
from imprompt.lab.suite.images import ImageSettings, SuiteCondition, SuiteModels, generate_images
from imprompt.lab.suite.subjects import CHANGES, Subject
from imprompt.report import PictureRow, draw_sheet, write_picture

FEATURED = 8
"""Characters in the README's picture."""

CONTACTS = 36
"""Characters on the contact sheet."""


@dataclass(frozen=True)
class ShowcaseColumn:
    """One column: its title and its condition; with edges, they are those of the row's neighbor."""

    title: str
    condition: SuiteCondition
    has_edges: bool = False


COLUMNS = (
    ShowcaseColumn("scale 0", SuiteCondition(0.0)),
    ShowcaseColumn("scale 0.5", SuiteCondition(0.5)),
    ShowcaseColumn("scale 1", SuiteCondition(1.0)),
    ShowcaseColumn("“sunglasses”", SuiteCondition(1.0, CHANGES["sunglasses"])),
    ShowcaseColumn("“pixel-art style”", SuiteCondition(0.75, CHANGES["pixel-art"])),
    ShowcaseColumn("edges of another", SuiteCondition(1.0), has_edges=True),
)


def write_showcase(
    models: SuiteModels,
    subjects: Sequence[Subject],
    settings: ImageSettings,
    output: Path,
    advance: Callable[[int], None] = lambda pictures: None,
) -> None:
    """Write `readme.png`, the README's picture, and `contact-sheet.png`.

    Args:
        models: the models; without a ControlNet the column of edges is left out
        subjects: unseen characters; the first ones are shown
        settings: how images are generated
        output: folder of both files
        advance: called with the number of further images
    """
    columns = [column for column in COLUMNS if models.controlnet is not None or not column.has_edges]
    featured = subjects[:FEATURED]
    pictures = [generate_column(models, featured, column, settings) for column in columns]
    advance(len(featured) * len(columns))
    titles = ["reference", *(column.title for column in columns)]
    write_picture(build_sheet(titles, featured, pictures, blocks=1), output / "readme.png")
    several = subjects[:CONTACTS]
    alone = [
        generate_images(models, several, SuiteCondition(1.0, seed=seed), settings, advance)
        for seed in range(2)
    ]
    titles = ["reference", "scale 1", "another seed"]
    write_picture(build_sheet(titles, several, alone, blocks=4), output / "contact-sheet.png")


def build_sheet(
    titles: Sequence[str],
    subjects: Sequence[Subject],
    columns: Sequence[Sequence[Image.Image]],
    *,
    blocks: int,
) -> Image.Image:
    """Draw a sheet of references, each with its image of every column."""
    rows = [
        PictureRow([subject.picture, *(column[place] for column in columns)])
        for place, subject in enumerate(subjects)
    ]
    return draw_sheet(titles, rows, blocks=blocks)


def generate_column(
    models: SuiteModels,
    subjects: Sequence[Subject],
    column: ShowcaseColumn,
    settings: ImageSettings,
) -> list[Image.Image]:
    """Generate one image of each subject."""
    if not column.has_edges:
        return generate_images(models, subjects, column.condition, settings)
    pipe: Any = mini.as_pipeline(StableDiffusionControlNetPipeline, models.pipe, controlnet=models.controlnet)
    neighbors = [*subjects[1:], subjects[0]]
    edges = [mini.edge_picture(one.picture, one.picture.width) for one in neighbors]
    return generate_images(replace(models, pipe=pipe), subjects, column.condition, settings, edges=edges)
