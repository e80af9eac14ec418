"""How often a person is recognized that adapters draw in another style than that of the image prompt.

    python bench/identity.py ADAPTER@SCALE ... [--subjects N] [--recognizer MODEL] [--output FOLDER]

Every image prompt is a person of a combination of hair, skin and hairdo that no part of the embedded model
has seen; the text names another style. A person counts as found if its own drawing in that style is nearest
to the picture, by the judge's embedding, among 200 drawings of the style with the same expression and ground.
The last row is another drawing of the same person: the most that can be found.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from imprompt import load_adapter
from imprompt.checkpoint import EMBEDDED, load_embedded_recognizer
from imprompt.evaluation.metrics import bootstrap_interval
from imprompt.lab.figures.images import FigureImages, FigureSettings
from imprompt.lab.figures.measures import Pictures, read_shares
from imprompt.lab.figures.people import PeopleGalleries, PersonInStyle, draw_again, sample_people
from imprompt.lab.making.views import IDENTITY
from imprompt.lab.suite.measure import load_models
from imprompt.lab.suite.scoring import read_pictures
from imprompt.report import PictureRow, draw_sheet
from imprompt.runtime.files import resolve_in_cache

GALLERY = 200
"""The number of drawings among which a person is searched, its own included."""

SHOWN = 8
"""People on the sheet."""


class Arm(NamedTuple):
    """An adapter and the scale λ of its image prompts."""

    adapter: str
    scale: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arms", nargs="+", type=parse_arm, help="mini@0.75, or the file of an adapter@1")
    parser.add_argument("--subjects", type=int, default=48, help="unseen people")
    parser.add_argument(
        "--recognizer", help="model whose recognizer embeds faces: a folder or a name in the cache"
    )
    parser.add_argument("--output", type=Path, help="folder for the sheet")
    options = parser.parse_args(arguments)
    people = sample_people(options.subjects)
    images = FigureImages(load_models(None), FigureSettings(), [person.subject for person in people])
    columns = {
        f"{Path(arm.adapter).parent.name or arm.adapter}, scale {arm.scale:g}": generate(
            images, people, arm, options.recognizer
        )
        for arm in options.arms
    }
    columns["another drawing"] = [images.fit(draw_again(person)) for person in people]
    Console().print(tabulate(images, people, columns))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_sheet({"image prompt": images.drawings, **columns}, options.output / "identity.png")
    return 0


def parse_arm(text: str) -> Arm:
    """Read `adapter@scale`."""
    name, _, scale = text.rpartition("@")
    return Arm(name, float(scale))


def generate(
    images: FigureImages, people: Sequence[PersonInStyle], arm: Arm, recognizer: str | None
) -> Pictures:
    """Generate every person in the asked style."""
    adapter = load_adapter(arm.adapter).float()
    if recognizer is not None and arm.adapter not in EMBEDDED:
        adapter.face_embedder = load_embedded_recognizer(resolve_in_cache(recognizer))
    prompts = images.build_prompts(scale=arm.scale)
    return images.generate(prompts, adapter=adapter, prompt=[person.text for person in people])


def tabulate(images: FigureImages, people: Sequence[PersonInStyle], columns: dict[str, Pictures]) -> Table:
    """Measure every column."""
    judge = images.models.judge
    galleries = PeopleGalleries(judge, people, GALLERY)
    targets = [replace(person.subject, character=person.target) for person in people]
    names = [
        [name for name in IDENTITY if person.subject.character.get(name) and person.target.get(name)]
        for person in people
    ]
    table = Table("", f"found among {GALLERY}", "asked style", "attributes of the person kept")
    for title, pictures in columns.items():
        kept = read_shares(read_pictures(judge, pictures), targets, names)
        values = galleries.measure_found(pictures), galleries.measure_style(pictures), kept[np.isfinite(kept)]
        table.add_row(title, *(bootstrap_interval(one).percent for one in values))
    return table


def write_sheet(columns: dict[str, Pictures], path: Path) -> None:
    """Write the first people side by side."""
    rows = [PictureRow(row) for row in zip(*(column[:SHOWN] for column in columns.values()), strict=True)]
    draw_sheet(list(columns), rows).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
