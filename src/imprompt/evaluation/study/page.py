"""The study's page: the paper's Table 1 in miniature, its verdict, and grids by mechanism."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from imprompt.evaluation.report import Column, Grid, Report, Section, Table, best_median_worst
from imprompt.evaluation.sheets import Row
from imprompt.evaluation.study.balance import balance_section, balance_sentences, own_row, weigh
from imprompt.evaluation.study.comparing import (
    ALONE,
    CAPTION,
    GAP,
    NOTHING,
    OURS,
    TOGETHER,
    Difference,
    Measure,
    Scores,
    grouped,
    sentence,
)
from imprompt.evaluation.study.measuring import Study
from imprompt.evaluation.study.runs import Measured, StudyRun, differences
from imprompt.evaluation.study.settings import CONTROL, IMAGE, STYLE, TEXT
from imprompt.injection import MECHANISMS

SHOWN = 6
"""Concepts in a grid: the first ones by hash, chosen by nobody."""

EXTREMES = 3
"""Best, median and worst ones each."""

EQUAL = 0.01
"""Numbers of parameters that differ by no more than this share are equal."""

Results = Mapping[tuple[str, int], Measured]
"""(mechanism, seed of training) → what was measured of that run."""


def report_of(
    study: Study, runs: Sequence[StudyRun], results: Results, facts: Mapping[str, Any]
) -> tuple[Report, list[Difference]]:
    """The page, and the differences behind its verdict."""
    scores = Scores([score for measured in results.values() for score in measured.scores])
    others = [name for name in scores.mechanisms if name not in (OURS, NOTHING)]
    found = [scores.difference(measure, other) for measure in (*ALONE, *TOGETHER) for other in others]
    known = [one for one in found if one is not None]
    weighed = weigh(scores, study.settings)
    words = TOGETHER_TEXT.format(text=study.settings.asking)
    sections = [
        Section("Table 1 in miniature", alone_text(study, runs), [alone(scores, runs)]),
        Section("With text, on a fine-tuned base, with a control", words, [together(scores)]),
        *([balance_section(weighed)] if weighed.curves else []),
        Section("Decoupled against each other one", DIFFERENCE_TEXT, difference_tables(known)),
        *grids(study, runs, results),
    ]
    lead = " ".join([verdict(runs, known), *balance_sentences(weighed)])
    return Report("Mechanisms on one base", lead, sections, facts, over="imprompt evaluate study"), known


# Tables


def alone(scores: Scores, runs: Sequence[StudyRun]) -> Table:
    """Image prompt alone."""
    measures = [one for one in ALONE if one is not CAPTION or scores.interval(NOTHING, CAPTION) is not None]
    rows = []
    for name in scores.mechanisms:
        figures = [scores.interval(name, measure) for measure in measures]
        few = "–" if name == NOTHING else f"{parameters(runs, name):,}"
        seeds = len(scores.seeds(name)) if name != NOTHING else None
        rows.append([name, few, seeds, *figures, scores.normalised(name), scores.spread(name, GAP)])
    columns = ["mechanism", "trained parameters", Column("seeds", digits=0), *map(headed, measures)]
    return Table(
        [*columns, "normalised", "between seeds"],
        rows,
        note="Similarity is the judge’s cosine of picture and image prompt (the paper’s CLIP-I); the gap is "
        "how much more that is than for another drawing of the same style; retrieval looks for the concept "
        "among all held-out ones of the style. Normalised: from a shuffled image prompt (0) to a light copy "
        "of the own one (1). Between seeds: standard deviation of the gap over trainings.",
        strong=own_row(scores.mechanisms),
    )


def together(scores: Scores) -> Table:
    """What an image prompt should get along with."""
    rows = [[name, *(scores.interval(name, measure) for measure in TOGETHER)] for name in scores.mechanisms]
    return Table(
        ["mechanism", *map(headed, TOGETHER)],
        rows,
        note="The gap says what is left of the image prompt there. Edges: correlation with the edges that "
        "were given minus that with others’; what ignores the image prompt is free to follow them best.",
        strong=own_row(scores.mechanisms),
    )


def difference_tables(known: Sequence[Difference]) -> list[Table]:
    """One table for each other mechanism."""
    others = dict.fromkeys(one.other for one in known)
    return [
        Table(
            ["figure", "decoupled minus it", "smallest of a seed", "largest of a seed", "decoupled is"],
            [
                [one.measure.name, one.interval, min(one.by_seed), max(one.by_seed), one.verdict]
                for one in known
                if one.other == other
            ],
            title=f"against {other}",
        )
        for other in others
    ]


def headed(measure: Measure) -> Column:
    """A measure's column."""
    return Column(measure.name, percent=measure.percent, digits=0 if measure.percent else 3)


def parameters(runs: Sequence[StudyRun], mechanism: str) -> int:
    """How many a mechanism trains."""
    return next(run.parameters for run in runs if run.mechanism == mechanism)


# Words


def alone_text(study: Study, runs: Sequence[StudyRun]) -> str:
    """What was done, and in what the runs are not alike."""
    settings, differing = study.settings, differences(runs)
    said = (
        "Every mechanism on the embedded base, trained on the same pictures, steps and batches, then asked "
        f"for {len(study.drawings)} concepts that no part of the model has seen: one picture each, "
        f"{settings.steps} steps, guidance {settings.guidance_scale}, scale {settings.scale}, no text. "
        "In brackets the 95 % interval over concepts."
    )
    unlike = f" The runs are not alike: {'; '.join(differing)}." if differing else ""
    return said + unlike


TOGETHER_TEXT = (
    "With text: one of “{text}” beside each image prompt. What the text asks for: how much more a picture "
    "looks like what the base alone draws from its text than from the others. The first row is the base "
    "without an image prompt. On a base fine-tuned to draw blueprints: the share on dark blue paper; a "
    "mechanism that trains the U-Net cannot leave its own, so the style’s change of weights is added to "
    "that. With a control: a ControlNet with another drawing’s edges; it reads what the U-Net reads in the "
    "text’s place."
)
DIFFERENCE_TEXT = (
    "On the same concepts, seeds averaged, with the interval over concepts. “Better” and “worse” are said "
    "where the interval excludes 0 and every seed of training agrees; the intervals are not corrected for "
    "how many there are."
)


def verdict(runs: Sequence[StudyRun], known: Sequence[Difference]) -> str:
    """The paper's claim, decoupled against concatenated, and the rest in a sentence."""
    gaps = [one for one in known if one.measure is GAP]
    if not gaps:
        return "There is no decoupled run with another one of the same seed beside it: nothing to compare."
    ours, said = parameters(runs, OURS), []
    for one in (one for one in gaps if not trains_base(one.other)):
        theirs = parameters(runs, one.other)
        equal = abs(theirs / ours - 1) <= EQUAL
        size = "equally many parameters" if equal else f"{theirs:,} parameters against {ours:,}"
        said.append(f"with {size}, {sentence(one)}")
    parts = [f"With the image prompt alone: {'; '.join(said)}."] if said else []
    return " ".join([*parts, *against_larger([one for one in gaps if trains_base(one.other)])])


def against_larger(gaps: Sequence[Difference]) -> list[str]:
    """A sentence on those that train the whole U-Net, if there are any."""
    if not gaps:
        return []
    said = grouped({one.other: one.verdict for one in gaps})
    return [f"Of those that train the whole U-Net too, it is {said}."]


def trains_base(mechanism: str) -> bool:
    """Whether a mechanism, by its name in tables, trains the U-Net."""
    kind = MECHANISMS.get(mechanism.partition(",")[0])
    return kind is not None and kind.trains_base


# Grids


def grids(study: Study, runs: Sequence[StudyRun], results: Results) -> list[Section]:
    """The paper's figures 3, 6, 9 and 10 by mechanism, and the best, median and worst."""
    first = {name: min(seed for other, seed in results if other == name) for name, _ in results}
    columns = {name: results[name, seed].pictures for name, seed in first.items()}
    asks = {
        IMAGE: "Image prompt alone (the paper’s figure 3)",
        CONTROL: "With a control (the paper’s figure 6)",
        TEXT: "With text (the paper’s figure 9)",
        STYLE: "On a fine-tuned base (the paper’s figure 4)",
    }
    sections = [
        Section(
            title,
            "The first concepts by hash; the first seed of training; with * the U-Net is trained too.",
            [grid(study, columns, which)],
        )
        for which, title in asks.items()
    ]
    return [*sections, *ablation(study, results), *extremes(study, columns, results)]


def grid(
    study: Study,
    columns: Mapping[str, Mapping[str, Sequence[Image.Image]]],
    condition: str,
    places: Sequence[int] | None = None,
) -> Grid:
    """References, and what each mechanism makes of them."""
    chosen = list(range(min(SHOWN, study.count(condition)))) if places is None else list(places)
    before: dict[str, Sequence[Image.Image]] = {"image prompt": study.references}
    if condition == CONTROL:
        before["edges"] = study.controls
    every = {**before, **{titled(name): pictures[condition] for name, pictures in columns.items()}}
    rows = [
        Row([pictures[place] for pictures in every.values()], labelled(study, condition, place))
        for place in chosen
    ]
    return Grid(list(every), rows)


def labelled(study: Study, condition: str, place: int) -> str:
    """A row's label: the concept, and what was asked for beside it."""
    concept = study.drawings[place].concept
    return f"{concept}: “{study.settings.asking.beside(concept)}”" if condition == TEXT else concept


def titled(mechanism: str) -> str:
    """A column's title: those that train the base are marked."""
    return f"{mechanism} *" if trains_base(mechanism) else mechanism


def ablation(study: Study, results: Results) -> list[Section]:
    """Decoupled and concatenated side by side, every seed of both."""
    chosen = {
        f"{name}, seed {seed}": measured.pictures
        for (name, seed), measured in results.items()
        if name.partition(",")[0] in (OURS, "concatenated")
    }
    if len(chosen) < 2:
        return []
    text = "All seeds of training, from the same noise."
    return [Section("Decoupled and concatenated (the paper’s figure 10)", text, [grid(study, chosen, IMAGE)])]


def extremes(
    study: Study, columns: Mapping[str, Mapping[str, Sequence[Image.Image]]], results: Results
) -> list[Section]:
    """The concepts that the decoupled adapter does best, middling and worst."""
    if OURS not in columns:
        return []
    seed = min(seed for name, seed in results if name == OURS)
    gaps = [score.gap for score in results[OURS, seed].scores if score.condition == IMAGE]
    places = best_median_worst(gaps, EXTREMES)
    text = f"By the decoupled adapter’s gap, seed {seed}: {EXTREMES} each, the best first."
    return [Section("Best, median and worst", text, [grid(study, columns, IMAGE, places)])]
