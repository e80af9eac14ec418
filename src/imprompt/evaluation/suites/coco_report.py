"""The page of `coco`: Table 1's columns, with floor and ceiling, and the pictures behind them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from imprompt.evaluation.judges.clip import PAPER_JUDGE
from imprompt.evaluation.methods import METHODS
from imprompt.evaluation.metrics import chance_within, clip_score, cmmd, found_within, kid, normalised
from imprompt.evaluation.suites.data import Captioned
from imprompt.evaluation.suites.features import seen as shown_to
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.judges import Seat
from imprompt.evaluation.suites.runs import Drawn, fault_words, method_words, sampler_words
from imprompt.evaluation.suites.scoring import (
    Likeness,
    Seen,
    by_owner,
    diversity,
    first_of_each,
    floor_and_ceiling,
    likeness,
    over_references,
)
from imprompt.evaluation.suites.settings import CocoSettings
from imprompt.report import (
    Cell,
    Column,
    Grid,
    KeyFigure,
    PictureRow,
    Report,
    Section,
    Table,
    best_median_worst,
)

PAPER_ROW = "the paper's Table 1"

Judged = Sequence[tuple[Seat, Seen]]

CHOICES = (
    "The paper names its metrics, judge, steps, guidance and numbers of pictures. Ours where it is silent: "
    "CLIP-T to the first caption by id, and as a cosine also the mean over all; the reference is judged as "
    "the middle square that its encoder sees, and whole, squeezed to a square; the negative prompt is empty "
    "unless the facts say otherwise; seeds follow from image id and sample; intervals are 95 % bootstraps "
    "over references."
)


def coco_report(
    asked: CocoSettings,
    images: Sequence[Captioned],
    drawn: Drawn,
    judged: Judged,
    unreadable: int,
    folder: BenchmarkFolder,
) -> tuple[Report, dict[str, Any]]:
    """The page, and its figures for programs."""
    published = METHODS[asked.method.name]
    name = method_words(asked.method, published)
    found = [(seat, seen, rows_for(name, seen)) for seat, seen in judged]
    figures = {seat.judge.name: figures_of(seat, seen, rows) for seat, seen, rows in found}
    seat, seen, rows = found[0]
    best = figures[seat.judge.name]["conditions"][name]
    selves = [one.judge.name for one, _ in judged if one.is_self]
    warning = f" {', '.join(selves)} conditions the method itself: such columns say self." if selves else ""
    lead = (
        f"{name} on {len(images):,} references, {len(drawn.tasks):,} pictures.{warning} "
        f"{fault_words(unreadable, len(drawn.failed))}"
    ).strip()
    sections = [
        Section(
            "Scores", CHOICES, [table_of(seat, seen, rows, figures, asked) for seat, seen, rows in found]
        ),
        Section("All pictures together", SETS, [sets_table(found, figures)]),
    ]
    if grid := cases(asked, images, drawn, rows[name], seen, folder):
        sections.append(Section("Best, median and worst", f"By {seat.title}.", [grid]))
    tiles = [KeyFigure(best["similarity"], seat.title, "1 is the reference itself")]
    if best["clip score"] is not None:
        tiles.append(KeyFigure(best["clip score"], seat.text_title, "2.5 × the cosine to the first caption"))
    report = Report(
        title=f"COCO: {name}",
        lead=lead,
        sections=sections,
        facts=facts(asked, images, drawn, judged),
        overline="imprompt evaluate coco",
        key_figures=tiles,
    )
    return report, {
        "method": name,
        "references": len(images),
        "pictures": len(drawn.tasks),
        "unreadable": unreadable,
        "failed": len(drawn.failed),
        "judges": figures,
    }


SETS = (
    "Distances between what was drawn, one picture of each reference, and the references, in each judge's "
    "features: 0 is the same distribution. Compare them under one judge and one number of pictures only."
)


def rows_for(name: str, seen: Seen) -> dict[str, Likeness]:
    """The method's scores, and those of blind and nearly perfect answers."""
    return {name: likeness(seen, seen.drawn, seen.owner), **floor_and_ceiling(seen)}


def figures_of(seat: Seat, seen: Seen, rows: dict[str, Likeness]) -> dict[str, Any]:
    """A judge's figures, with intervals over references."""
    conditions = {name: condition(row, seen, number == 0) for number, (name, row) in enumerate(rows.items())}
    method, floor, ceiling, itself = conditions.values()
    one = first_of_each(seen.owner)
    enough = len(one) > 1
    return {
        "is self": seat.is_self,
        "conditions": conditions,
        "normalised similarity": _share(method, floor, ceiling, "similarity"),
        "normalised text": _share(method, floor, itself, "text"),
        "chance@1": chance_within(len(seen.square), 1),
        "diversity": diversity(seen.drawn, seen.owner),
        "KID": kid(seen.drawn[one], seen.square[seen.owner[one]]) if enough else None,
        "CMMD": cmmd(seen.drawn[one], seen.square[seen.owner[one]]) if enough else None,
    }


def _share(method: dict[str, Any], floor: dict[str, Any], ceiling: dict[str, Any], what: str) -> float | None:
    if method[what] is None:
        return None
    return normalised(method[what].mean, floor=floor[what].mean, ceiling=ceiling[what].mean)


def condition(row: Likeness, seen: Seen, is_drawn: bool) -> dict[str, Any]:
    """One row's figures."""
    owner = seen.owner if is_drawn else torch.arange(len(seen.square))

    def mean(values: Any) -> Any:
        return None if values is None else over_references(values, owner)

    return {
        "similarity": mean(row.square),
        "similarity whole": mean(row.whole),
        "gap": mean(row.gap),
        "retrieval@1": mean(found_within(row.rank, 1)),
        "retrieval@5": mean(found_within(row.rank, 5)),
        "clip score": mean(None if row.first is None else clip_score(row.first)),
        "text": mean(row.first),
        "text mean": mean(row.mean),
    }


def table_of(
    seat: Seat, seen: Seen, rows: dict[str, Likeness], figures: dict[str, Any], asked: CocoSettings
) -> Table:
    """Table 1's columns by one judge, and ours beside them."""
    mine = figures[seat.judge.name]
    keys = ["similarity", "similarity whole", "gap", "retrieval@1", "retrieval@5"]
    columns: list[str | Column] = ["", seat.title, f"{seat.title}, whole", "gap to another"]
    columns += [Column("retrieval@1", percent=True, digits=1), Column("@5", percent=True, digits=1)]
    if seen.captions is not None:
        keys = ["clip score", *keys, "text", "text mean"]
        columns = ["", seat.text_title, *columns[1:], "cosine, caption 1", "cosine, all captions"]
    body: list[list[Cell]] = [[name, *(row[key] for key in keys)] for name, row in mine["conditions"].items()]
    paper = METHODS[asked.method.name].paper
    if paper and seat.judge.name == PAPER_JUDGE:
        body.insert(1, [PAPER_ROW, paper[0], paper[1], *[None] * (len(keys) - 2)])
    note = (
        f"{mine['normalised similarity']:.0%} of the way from another reference to a light copy; a blind "
        f"guess retrieves {mine['chance@1']:.2%}."
    )
    return Table(columns, body, note=note, title=f"Judge: {seat.judge.name}", strong=(0,))


def sets_table(found: Sequence[Any], figures: dict[str, Any]) -> Table:
    """KID, CMMD and diversity by every judge."""
    columns: list[str | Column] = ["judge", Column("KID", digits=5), "CMMD", "diversity"]
    rows: list[list[Cell]] = [
        [seat.judge.name, *(figures[seat.judge.name][key] for key in ("KID", "CMMD", "diversity"))]
        for seat, _, _ in found
    ]
    return Table(
        columns, rows, note="Diversity is the mean distance, 1 - cosine, among one reference's samples."
    )


def cases(
    asked: CocoSettings,
    images: Sequence[Captioned],
    drawn: Drawn,
    row: Likeness,
    seen: Seen,
    folder: BenchmarkFolder,
) -> Grid | None:
    """References beside their pictures: the best, the median and the worst ones."""
    samples = asked.data.samples
    places = [rows for rows in by_owner(np.arange(len(drawn.tasks)), seen.owner) if len(rows) == samples]
    if not places or not asked.judging.shown:
        return None
    scores = [float(row.square[rows.tolist()].mean()) for rows in places]
    rows = []
    for index in best_median_worst(scores, asked.judging.shown):
        tasks = [drawn.tasks[place] for place in places[index].tolist()]
        image = images[int(seen.owner[places[index][0]])]
        pictures = [shown_to(folder.picture(task.key), "drawn") for task in tasks]
        label = f"{scores[index]:.3f}  {image.captions[0]}"
        rows.append(PictureRow([shown_to(image.path, "square"), *pictures], label))
    return Grid(["reference", *(f"sample {k + 1}" for k in range(samples))], rows)


def facts(asked: CocoSettings, images: Sequence[Captioned], drawn: Drawn, judged: Judged) -> dict[str, Any]:
    """How it was made."""
    published = METHODS[asked.method.name]
    said = {
        "base or pipeline": asked.method.model or published.model,
        "adapter": asked.method.adapter,
        "beside it": asked.method.second or published.second,
        "particular": published.note,
        "sampler": sampler_words(asked.drawing, published),
        "λ": asked.data.scale if asked.method.adapter else "",
        "negative prompt": asked.drawing.negative_prompt,
        "size": f"{asked.drawing.size} px" if asked.drawing.size else "the model's own",
        "references": f"{len(images):,}, {asked.data.samples} samples each",
        "judges": ", ".join(seat.judge.name + (" (self)" if seat.is_self else "") for seat, _ in judged),
        "remarks": "; ".join(remark for seat, _ in judged for remark in seat.judge.remarks()),
    }
    return {name: value for name, value in said.items() if value != ""}
