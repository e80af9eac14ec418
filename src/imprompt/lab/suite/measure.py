"""The suite, from characters to figures."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from imprompt import mini
from imprompt.checkpoint import EMBEDDED, load_adapter
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.lab.making.characters import Split
from imprompt.lab.suite.against import EarlierReport, compare_scores, load_earlier_report
from imprompt.lab.suite.copying import count_copies
from imprompt.lab.suite.findings import (
    CODEC,
    CURVE_SCALES,
    DRAWING,
    FLOOR,
    SCALES,
    SMALL,
    Findings,
    SplitFindings,
    SuiteSettings,
    TextFindings,
    name_scale,
)
from imprompt.lab.suite.page import build_report, print_findings
from imprompt.lab.suite.painting import Condition, SuiteModels, paint, through_codec
from imprompt.lab.suite.scoring import (
    Galleries,
    Readings,
    Score,
    attribute_shares,
    mean_of,
    read_pictures,
    score_pictures,
    seed_distances,
)
from imprompt.lab.suite.subjects import CHANGES, SPLITS, Subject, sample_gallery, sample_subjects, suited
from imprompt.report import (
    Interval,
    make_folder,
    write_report,
    write_scores,
)
from imprompt.runtime.progress import show_progress

Pictures = dict[tuple[str, str], list[Image.Image]]
"""(split or text, condition) → a picture of each subject."""


def evaluate_mini(
    *,
    output: Path,
    weights: Path | None = None,
    adapter: str = "mini",
    small: bool = False,
    against: Path | None = None,
    settings: SuiteSettings | None = None,
) -> Findings:
    """Measure an adapter of the embedded model on characters that it has never seen; write report and scores.

    Args:
        output: folder of the report, made if it is not there
        weights: folder of the embedded model, if not the shipped one
        adapter: "mini" or "mini-plus", the model's own, or a file for it, as `imprompt train` writes it
        small: fewer characters: a minute or two on two cores
        against: folder of an earlier report with the same settings, to be compared with
        settings: how much is measured, in place of what `small` says

    Raises:
        OutputError: the folder cannot be written
        ConfigError: the earlier report is none, or has other settings
        UnknownModel: weights, judge or adapter are not there
        CheckpointError, AdapterMismatch: no adapter, or one for another base
        MissingExtra: a library that draws or measures is not installed
    """
    make_folder(output)
    settings = settings or (SMALL if small else SuiteSettings())
    earlier = None if against is None else load_earlier_report(against, settings)
    return measure(load_models(weights, adapter), settings, output=output, earlier=earlier)


def load_models(weights: Path | None, adapter: str = "mini") -> SuiteModels:
    """The base, an adapter and the judge, as `evaluate_mini` takes them; on a GPU if there is one."""
    folder = mini.WEIGHTS if weights is None else weights
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = adapter in EMBEDDED
    measured = mini.adapter(adapter, weights=folder) if own else load_adapter(adapter).float()
    name = adapter if own else Path(adapter).name
    judge = CharacterJudge.load(folder / "judge")
    return SuiteModels(mini.pipeline(weights=folder).to(device), measured.to(device), judge, name)


def measure(
    models: SuiteModels, settings: SuiteSettings, *, output: Path, earlier: EarlierReport | None = None
) -> Findings:
    """As `evaluate_mini`, on any models."""
    started = time.monotonic()
    subjects: dict[Split, list[Subject]] = {
        split: sample_subjects(split, settings.subjects) for split in SPLITS
    }
    pictures = paint_all(models, subjects, settings)
    styles = sorted({subject.character.style for several in subjects.values() for subject in several})
    drawings = {style: sample_gallery(style, settings.gallery - 1) for style in styles}
    galleries = Galleries(models.judge, drawings)
    scores, splits = score_splits(models, subjects, pictures, galleries)
    text_scores, texts = score_texts(models, subjects["combinations"], pictures, settings)
    findings = Findings(
        models.name,
        models.adapter.projection.tokens,
        settings,
        splits,
        texts,
        measure_diversity(models, subjects["combinations"], settings),
        count_copies(
            models.judge,
            pictures["combinations", name_scale(1.0)],
            [subject.picture for subject in subjects["combinations"]],
        ),
        round(time.monotonic() - started, 1),
        None if earlier is None else compare_scores([*scores, *text_scores], earlier),
    )
    write_scores([*scores, *text_scores], output)
    write_report(build_report(findings, subjects, pictures, scores), output, asdict(findings))
    print_findings(findings)
    return findings


def paint_all(
    models: SuiteModels, subjects: Mapping[Split, Sequence[Subject]], settings: SuiteSettings
) -> Pictures:
    """Every picture that is scored, and the ceilings."""
    jobs = [(split, several, Condition(scale)) for split, several in subjects.items() for scale in SCALES]
    for name, change in CHANGES.items():
        few = suited(subjects["combinations"], change)[: settings.text_subjects]
        jobs += [(name, few, Condition(scale, change)) for scale in CURVE_SCALES]  # type: ignore[list-item]
    pictures: Pictures = {}
    with show_progress("pictures", sum(len(several) for _, several, _ in jobs)) as advance:
        for name, several, condition in jobs:
            made = paint(models, several, condition, settings.paint, advance)
            pictures[name, name_scale(condition.scale)] = made
    for split, several in subjects.items():
        originals = [subject.picture for subject in several]
        pictures[split, DRAWING], pictures[split, CODEC] = originals, through_codec(models, originals)
        pictures[split, FLOOR] = rotate(pictures[split, name_scale(1.0)])
    return pictures


def rotate(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Each subject's place holds the picture of another."""
    return [*pictures[1:], pictures[0]]


def score_splits(
    models: SuiteModels,
    subjects: Mapping[Split, Sequence[Subject]],
    pictures: Pictures,
    galleries: Galleries,
) -> tuple[list[Score], dict[Split, SplitFindings]]:
    """Score every condition without text, split by split."""
    everything: list[Score] = []
    findings: dict[Split, SplitFindings] = {}
    for split, several in subjects.items():
        references = read_pictures(models.judge, pictures[split, DRAWING])
        scores = {
            condition: score_condition(models, several, some, references, condition, galleries)
            for (name, condition), some in pictures.items()
            if name == split
        }
        findings[split] = summarize_split(scores, several)
        everything += [score for some in scores.values() for score in some]
    return everything, findings


def score_condition(
    models: SuiteModels,
    subjects: Sequence[Subject],
    pictures: Sequence[Image.Image],
    references: Readings,
    condition: str,
    galleries: Galleries,
) -> list[Score]:
    """Score one condition's pictures without text."""
    readings = read_pictures(models.judge, pictures)
    scale = float(condition.removeprefix("λ = ")) if condition.startswith("λ") else 1.0
    return score_pictures(
        subjects, readings, references, condition=condition, scale=scale, galleries=galleries
    )


def summarize_split(scores: Mapping[str, Sequence[Score]], subjects: Sequence[Subject]) -> SplitFindings:
    """The means of a split's conditions."""
    prompted = attribute_shares(scores[name_scale(1.0)], subjects)
    drawn = attribute_shares(scores[DRAWING], subjects)

    def over(value: Callable[[Score], float | bool]) -> dict[str, Interval]:
        return {name: mean_of(value(score) for score in some) for name, some in scores.items()}

    return SplitFindings(
        kept=over(lambda score: score.kept),
        all_kept=over(lambda score: score.all_kept),
        found=over(lambda score: score.rank == 0),
        attributes={name: (share, drawn[name][0], count) for name, (share, count) in prompted.items()},
    )


def score_texts(
    models: SuiteModels, subjects: Sequence[Subject], pictures: Pictures, settings: SuiteSettings
) -> tuple[list[Score], dict[str, TextFindings]]:
    """Score every text at every λ."""
    everything: list[Score] = []
    findings = {}
    for name, change in CHANGES.items():
        few = suited(subjects, change)[: settings.text_subjects]
        references = read_pictures(models.judge, [subject.picture for subject in few])
        curve = []
        for scale in CURVE_SCALES:
            readings = read_pictures(models.judge, pictures[name, name_scale(scale)])
            curve.append(
                score_pictures(few, readings, references, condition=name, scale=scale, change=change)
            )
        findings[name] = TextFindings(
            change.text,
            len(few),
            [mean_of(bool(score.asked) for score in scores) for scores in curve],
            [mean_of(score.kept for score in scores) for scores in curve],
        )
        everything += [score for scores in curve for score in scores]
    return everything, findings


def measure_diversity(models: SuiteModels, subjects: Sequence[Subject], settings: SuiteSettings) -> Interval:
    """Mean cosine distance among the judge's embeddings of several pictures of one subject at λ = 1."""
    few = subjects[: settings.diverse]
    seeds = [paint(models, few, Condition(1.0, seed=seed), settings.paint) for seed in range(settings.seeds)]
    embeddings = torch.stack([read_pictures(models.judge, some).embeddings for some in seeds])
    return mean_of(seed_distances(embeddings))
