"""The study's page: the paper's Table 1 in miniature, its verdict, and contact sheets by mechanism."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imprompt.lab.making.captions import write_full_caption
from imprompt.lab.study.comparing import DECOUPLED, KEPT, MEASURES, Difference, StudyScores, describe_verdicts
from imprompt.lab.study.measuring import BASE_ALONE, Study
from imprompt.lab.study.runs import RunResult, StudyRun, list_differences
from imprompt.lab.study.settings import ALONE, CONTROL, SCALE, SHOWN, STYLE, TEXT, StudyTask
from imprompt.lab.study.tradeoff import AREA, TradeOff, build_tradeoff_section
from imprompt.lab.suite.scoring import DRAWING
from imprompt.lab.suite.subjects import CHANGES
from imprompt.report import Cell, Chart, Column, Grid, Line, PictureRow, Report, Section, Table
from imprompt.training.watching.history import History, read_history

EQUAL = 0.01
"""Numbers of parameters that differ by no more than this share are equal."""

PUBLISHED = {
    "decoupled": "IP-Adapter",
    "concatenated": "simple adapter; Uni-ControlNet’s global control",
    "style-adapter": "T2I-Adapter (style)",
    "shuffled-control": "ControlNet Shuffle",
    "unclip": "SD unCLIP",
    "replaced": "SD Image Variations",
    "two-stream": "Versatile Diffusion",
    "prior-decoder": "Kandinsky 2.1",
}
"""Mechanism → the row of the paper's Table 1 that has it."""

Results = Mapping[tuple[str, int], RunResult]
"""(mechanism, seed of training) → result of that run; the base alone is (`BASE_ALONE`, 0)."""


@dataclass(frozen=True)
class StudyFindings:
    """The results of a study.

    Attributes:
        runs: the compared runs
        unfinished: names of the other runs
        scores: of all images, also those of the base alone and of perfect drawings
        differences: decoupled minus every other mechanism, for every measure
        tradeoff: the curves over the scale
        verdict: in words
        seconds: how long measuring took
    """

    runs: Sequence[StudyRun]
    unfinished: Sequence[str]
    scores: StudyScores
    differences: Sequence[Difference]
    tradeoff: TradeOff
    verdict: str
    seconds: float


def build_report(study: Study, findings: StudyFindings, results: Results) -> Report:
    """Build the page."""
    settings = study.settings
    sections = [
        Section("Table 1 in miniature", describe_study(study, findings.runs), [build_main_table(findings)]),
        *([build_tradeoff_section(findings.tradeoff)] if findings.tradeoff.curves else []),
        Section(
            "Decoupled against each other one", DIFFERENCES, [build_difference_table(findings.differences)]
        ),
        build_training_section(findings.runs),
        build_contact_section(study, results),
    ]
    facts = {
        "runs": f"{len(findings.runs)}; not finished: {', '.join(findings.unfinished) or 'none'}",
        "characters": f"{settings.subjects} alone, {settings.text_subjects} with each text, "
        f"{settings.others} with edges and on the fine-tuned base",
        "pictures": f"{settings.paint.steps} steps, guidance {settings.paint.guidance_scale:g}",
        "time": f"{findings.seconds:.0f} s",
    }
    return Report(
        "Mechanisms on one base", findings.verdict, sections, facts, overline="imprompt evaluate study"
    )


# Tables


def build_main_table(findings: StudyFindings) -> Table:
    """Make the table of every mechanism's figures, after the floor and before the ceiling."""
    sizes = {run.mechanism: run.parameters for run in findings.runs}
    reusable = {run.mechanism: "no" if run.trains_base else "yes" for run in findings.runs}
    scores = findings.scores
    rows: list[list[Cell]] = [
        [
            name,
            PUBLISHED.get(name.partition(",")[0], ""),
            reusable.get(name, "–"),
            f"{sizes[name]:,}" if name in sizes else "–",
            len(scores.list_seeds(name)) if name in sizes else None,
            *(scores.measure_interval(name, measure) for measure in MEASURES),
        ]
        for name in scores.mechanisms
    ]
    figures = [Column(one.name, one.percent, 0 if one.percent else 3) for one in MEASURES]
    columns = [
        "mechanism",
        "in the paper",
        "on custom bases",
        "trained parameters",
        Column("seeds", digits=0),
        *figures,
    ]
    strong = [place for place, name in enumerate(scores.mechanisms) if name == DECOUPLED]
    return Table(columns, rows, TABLE_NOTE, strong=strong)


TABLE_NOTE = (
    f"“{BASE_ALONE}” is the base alone: the floor of what is kept, the ceiling of what text, edges and style "
    f"can reach. “{DRAWING}” is what a perfect mechanism would draw, and so the judge’s own limit. On custom "
    "bases: whether the base’s own weights stay, so that they can be exchanged. Kept: the share of the "
    "reference’s attributes that the judge reads. Similarity: the cosine of the judge’s embeddings of the "
    "picture and the reference, in place of CLIP-I. Text followed: the share in which the judge reads what "
    "the text asks "
    "for, in place of CLIP-T. With another character’s edges only colors count, of a line drawing only parts "
    "(hairdo, expression, glasses, beard). Edges: correlation with those given minus that with others’. Line "
    "drawing: the share of pixels between the paper’s color and the ink’s; a mechanism that trains the U-Net "
    "has the style’s change added to its own weights. Diversity, edges and lines are highest where the image "
    "prompt is ignored: read them together with what is kept."
)
DIFFERENCES = (
    "On the same characters, with the interval over characters and seeds of training. “Better” and “worse” "
    "are said where the interval excludes 0 and every seed agrees; half the interval’s width is about the "
    "smallest significant difference. Intervals are not corrected for their number."
)


def build_difference_table(differences: Sequence[Difference]) -> Table:
    """Make the table of every measure against each other mechanism."""
    columns = ["figure", "against", "decoupled minus it", "smallest of a seed", "largest of a seed"]
    rows: list[list[Cell]] = [
        [
            one.measure,
            one.other,
            one.interval,
            min(one.by_seed),
            max(one.by_seed),
            one.detectable,
            one.verdict,
        ]
        for one in differences
    ]
    return Table([*columns, "could be told", "decoupled is"], rows)


# Trainings

LOSS, GAP, PACE = "held-out loss", "gap to shuffled", "samples/s"
TRAININGS = (
    "The loss on held-out samples, averaged over the seeds. A text stands beside each reference, so the loss "
    "does not decide which picture keeps more of a reference; it shows how far a training has come."
)


def build_training_section(runs: Sequence[StudyRun]) -> Section:
    """Make the section of learning rates, held-out losses and times."""
    rates = {run.mechanism: run.learning_rate for run in runs}
    trainings: dict[str, list[History]] = {}
    for run in runs:
        trainings.setdefault(run.mechanism, []).append(read_history(run.folder))
    lines = [
        Line(name, average_points(histories), "accent" if name == DECOUPLED else "ink")
        for name, histories in sorted(trainings.items(), key=lambda one: one[0] == DECOUPLED)
    ]
    columns = [
        "mechanism",
        Column("learning rate", digits=4),
        Column(LOSS, digits=4),
        Column("lower than with another’s reference by", digits=4),
        Column("samples per second", digits=0),
    ]
    rows: list[list[Cell]] = [
        [
            name,
            rates[name],
            average([history.last(LOSS) for history in histories]),
            average([history.last(GAP) for history in histories]),
            average([find_pace(history) for history in histories]),
        ]
        for name, histories in trainings.items()
    ]
    return Section("Trainings", TRAININGS, [Chart("Held-out loss", "", lines), Table(columns, rows)])


def average_points(histories: Sequence[History]) -> list[tuple[int, float]]:
    """Return (step, held-out loss averaged over the runs) at the steps that all runs have."""
    losses = [dict(history.finite(LOSS)) for history in histories]
    steps = sorted(set.intersection(*map(set, losses)))
    return [(step, statistics.fmean(one[step] for one in losses)) for step in steps if step]


def find_pace(history: History) -> float | None:
    """Return the median of the samples per second, which a stop and other programs hardly change."""
    paces = [value for _, value in history.finite(PACE)]
    return statistics.median(paces) if paces else None


def average(values: Sequence[float | int | None]) -> float | None:
    """Return the mean of what is there."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# Words


def describe_study(study: Study, runs: Sequence[StudyRun]) -> str:
    """Describe what was done, and the settings in which the runs differ."""
    unlike = list_differences(runs)
    return (
        "Every mechanism on the embedded base, trained on the same samples, steps and batches, then given "
        f"{len(study.subjects)} characters that no part of the model has seen, at scale {SCALE:g}; in "
        "brackets the 95 % interval." + (f" The runs are not alike: {'; '.join(unlike)}." if unlike else "")
    )


def write_verdict(runs: Sequence[StudyRun], differences: Sequence[Difference]) -> str:
    """Write the comparisons in sentences, first the paper's claim: the one with the most equal parameters."""
    kinds = {run.mechanism: run for run in runs}
    kept = [one for one in differences if one.measure == KEPT.name]
    if not kept:
        return "There is no decoupled run with another run of the same seed to compare with."
    small = [one for one in kept if not kinds[one.other].trains_base]
    small.sort(key=lambda one: abs(kinds[one.other].parameters - kinds[DECOUPLED].parameters))
    large = {one.other: one.verdict for one in kept if kinds[one.other].trains_base}
    areas = {one.other: one.verdict for one in differences if one.measure == AREA}
    sentences = [
        *(describe_difference(one, kinds) for one in small),
        *([f"Of those that train the whole U-Net too, it is {describe_verdicts(large)}."] if large else []),
        *([f"With text, over the scale, its area is {describe_verdicts(areas)}."] if areas else []),
    ]
    return " ".join(sentences)


def describe_difference(difference: Difference, kinds: Mapping[str, StudyRun]) -> str:
    """Write a difference in words, with its numbers and both numbers of parameters."""
    other, seeds = difference.other, len(difference.by_seed)
    ours, theirs = kinds[DECOUPLED].parameters, kinds[other].parameters
    is_equal = abs(theirs / ours - 1) <= EQUAL
    size = "equally many parameters" if is_equal else f"{theirs:,} parameters against {ours:,}"
    words = {
        "better": f"decoupled is better than {other}",
        "worse": f"decoupled is worse than {other}",
        "cannot be told": f"whether decoupled is better or worse than {other} cannot be told",
    }
    numbers = f"{difference.interval.signed}, {seeds} seed{'s' if seeds > 1 else ''}"
    return f"With {size}, {words[difference.verdict]} ({difference.measure} {numbers})."


# Pictures


def build_contact_section(study: Study, results: Results) -> Section:
    """Make the paper's figures 3, 6, 9, 4 and 10 by mechanism."""
    first = {name: min(seed for other, seed in results if other == name) for name, _ in results}
    columns = {name: results[name, seed] for name, seed in first.items()}
    every_seed = {
        f"{name}, seed {seed}": result
        for (name, seed), result in results.items()
        if name.partition(",")[0] in (DECOUPLED, "concatenated")
    }
    sheets = {
        "Figure 3: image prompt alone": (columns, StudyTask(ALONE)),
        "Figure 6: with another’s edges": (columns, StudyTask(CONTROL)),
        **{f"Figure 9: “{one.text}”": (columns, StudyTask(TEXT, text=name)) for name, one in CHANGES.items()},
        "Figure 4: on a base fine-tuned to line drawings": (columns, StudyTask(STYLE)),
        "Figure 10: every seed of decoupled and concatenated": (every_seed, StudyTask(ALONE)),
    }
    text = (
        "Numbered as in the paper. The characters are the first ones, a row has the same noise, and every "
        "run has the first seed of training."
    )
    grids = [build_contact_sheet(study, *one, title) for title, one in sheets.items() if study.select(one[1])]
    return Section("Contact sheets", text, grids)


def build_contact_sheet(study: Study, columns: Mapping[str, RunResult], task: StudyTask, title: str) -> Grid:
    """Show references, and each mechanism's images of them."""
    subjects = study.select(task)[:SHOWN]
    pictures = {"reference": [subject.picture for subject in subjects]}
    if task.condition == CONTROL:
        pictures["edges"] = study.controls
    pictures |= {name: list(result.pictures[task.key]) for name, result in columns.items()}
    rows = [
        PictureRow([several[place] for several in pictures.values()], write_full_caption(subject.character))
        for place, subject in enumerate(subjects)
    ]
    return Grid(list(pictures), rows, title=title)
