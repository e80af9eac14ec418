"""The whole suite: from characters to figures and report."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from imprompt import mini
from imprompt.checkpoint import EMBEDDED, load_adapter
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.lab.making.characters import Split
from imprompt.lab.suite.against import EarlierReport, compare_scores, load_earlier_report
from imprompt.lab.suite.images import (
    SMALL,
    SuiteCondition,
    SuiteModels,
    SuiteSettings,
    generate_images,
    reconstruct_pictures,
)
from imprompt.lab.suite.page import build_report, judge_difference
from imprompt.lab.suite.scoring import (
    CODEC,
    CURVE_SCALES,
    DRAWING,
    FLOOR,
    PROMPTED,
    SCALES,
    Galleries,
    Score,
    SplitFindings,
    SuiteFindings,
    TextFindings,
    average,
    count_copies,
    measure_attribute_shares,
    measure_seed_distances,
    name_scale,
    read_pictures,
    score_pictures,
)
from imprompt.lab.suite.subjects import (
    CHANGES,
    SPLITS,
    TEXT_SPLIT,
    Subject,
    sample_gallery,
    sample_subjects,
    select_suitable,
)
from imprompt.report import Interval, to_plain, write_report, write_scores
from imprompt.runtime.devices import choose_device
from imprompt.runtime.output import make_folder
from imprompt.runtime.progress import show_progress

Pictures = dict[tuple[str, str], list[Image.Image]]
"""(split or text, condition) → an image of each subject."""


def evaluate_mini(
    *,
    output: Path,
    weights: Path | None = None,
    adapter: str = "mini",
    small: bool = False,
    against: Path | None = None,
    settings: SuiteSettings | None = None,
) -> SuiteFindings:
    """Measure an adapter of the embedded model on unseen characters, and write report and scores.

    Args:
        output: folder of the report, created if it does not exist
        weights: folder of the embedded model, if it is not the shipped one
        adapter: "mini" or "mini-plus", the model's own, or a file that `imprompt train` wrote for it, also
            for the embedded transformer
        small: use fewer characters, which takes a minute or two on two cores
        against: folder of an earlier report with the same settings, to compare with
        settings: how much to measure, in place of what `small` chooses

    Raises:
        OutputError: the folder cannot be written
        ConfigError: the earlier report cannot be read, or has other settings
        UnknownModel: weights, judge or adapter cannot be found
        CheckpointError, AdapterMismatch: the file is no adapter, or one for another base
        MissingExtra: a library that draws or measures is not installed
    """
    make_folder(output)
    settings = settings or (SMALL if small else SuiteSettings())
    earlier = None if against is None else load_earlier_report(against, settings)
    return measure(load_models(weights, adapter), settings, output=output, earlier=earlier)


def load_models(weights: Path | None, adapter: str = "mini") -> SuiteModels:
    """Load the base, an adapter and the judge, as for `evaluate_mini`, on a GPU if there is one."""
    folder = mini.WEIGHTS if weights is None else weights
    device = choose_device()
    own = adapter in EMBEDDED
    measured = mini.adapter(adapter, weights=folder) if own else load_adapter(adapter).float()
    name = adapter if own else Path(adapter).name
    judge = CharacterJudge.load(mini.find_part(folder, "judge"))
    on_transformer = measured.injection != "unet"
    pipe = mini.transformer_pipeline(weights=folder) if on_transformer else mini.pipeline(weights=folder)
    return SuiteModels(pipe.to(device), measured.to(device), judge, name)


def measure(
    models: SuiteModels, settings: SuiteSettings, *, output: Path, earlier: EarlierReport | None = None
) -> SuiteFindings:
    """Run the suite on any models; see `evaluate_mini`."""
    started = time.monotonic()
    subjects: dict[Split, list[Subject]] = {
        split: sample_subjects(split, settings.subjects) for split in SPLITS
    }
    pictures = generate_all(models, subjects, settings)
    styles = sorted({subject.character.style for several in subjects.values() for subject in several})
    drawings = {style: sample_gallery(style, settings.gallery - 1) for style in styles}
    galleries = Galleries(models.judge, drawings)
    scores, splits = score_splits(models, subjects, pictures, galleries)
    text_scores, texts = score_texts(models, subjects[TEXT_SPLIT], pictures, settings)
    findings = SuiteFindings(
        models.name,
        models.adapter.projection.tokens,
        settings,
        splits,
        texts,
        measure_diversity(models, subjects[TEXT_SPLIT], settings),
        count_copies(
            models.judge,
            pictures[TEXT_SPLIT, PROMPTED],
            [subject.picture for subject in subjects[TEXT_SPLIT]],
        ),
        round(time.monotonic() - started, 1),
        None if earlier is None else compare_scores([*scores, *text_scores], earlier),
    )
    write_scores([*scores, *text_scores], output)
    report = build_report(findings, subjects, pictures, scores)
    write_report(report, output, to_plain(findings))
    Console().print(report.lead, highlight=False)
    if findings.against is not None:
        for name, difference in findings.against.differences.items():
            Console().print(f"{name}: {difference.signed}, {judge_difference(difference)}", highlight=False)
    return findings


def generate_all(
    models: SuiteModels, subjects: Mapping[Split, Sequence[Subject]], settings: SuiteSettings
) -> Pictures:
    """Generate every image that is scored, and the images of floor and ceiling."""
    jobs = [
        (split, several, SuiteCondition(scale)) for split, several in subjects.items() for scale in SCALES
    ]
    for name, change in CHANGES.items():
        few = select_suitable(subjects[TEXT_SPLIT], change)[: settings.text_subjects]
        jobs += [(name, few, SuiteCondition(scale, change)) for scale in CURVE_SCALES]  # type: ignore[list-item]
    pictures: Pictures = {}
    with show_progress("pictures", sum(len(several) for _, several, _ in jobs)) as advance:
        for name, several, condition in jobs:
            made = generate_images(models, several, condition, settings.paint, advance)
            pictures[name, name_scale(condition.scale)] = made
    for split, several in subjects.items():
        originals = [subject.picture for subject in several]
        pictures[split, DRAWING], pictures[split, CODEC] = originals, reconstruct_pictures(models, originals)
        first, *others = pictures[split, PROMPTED]
        pictures[split, FLOOR] = [*others, first]
    return pictures


def score_splits(
    models: SuiteModels,
    subjects: Mapping[Split, Sequence[Subject]],
    pictures: Pictures,
    galleries: Galleries,
) -> tuple[list[Score], dict[Split, SplitFindings]]:
    """Score every condition without text, split by split."""
    everything: list[Score] = []
    findings: dict[Split, SplitFindings] = {}
    scales = {name_scale(scale): scale for scale in SCALES}
    for split, several in subjects.items():
        references = read_pictures(models.judge, pictures[split, DRAWING])
        scores = {
            condition: score_pictures(
                several,
                read_pictures(models.judge, some),
                references,
                condition=condition,
                scale=scales.get(condition, 1.0),
                galleries=galleries,
            )
            for (name, condition), some in pictures.items()
            if name == split
        }
        findings[split] = summarize_split(scores, several)
        everything += [score for some in scores.values() for score in some]
    return everything, findings


def summarize_split(scores: Mapping[str, Sequence[Score]], subjects: Sequence[Subject]) -> SplitFindings:
    """Average the scores of a split's conditions."""
    prompted = measure_attribute_shares(scores[PROMPTED], subjects)
    drawn = measure_attribute_shares(scores[DRAWING], subjects)

    def over(value: Callable[[Score], float | bool]) -> dict[str, Interval]:
        return {name: average(value(score) for score in some) for name, some in scores.items()}

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
        few = select_suitable(subjects, change)[: settings.text_subjects]
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
            [average(bool(score.asked) for score in scores) for scores in curve],
            [average(score.kept for score in scores) for scores in curve],
        )
        everything += [score for scores in curve for score in scores]
    return everything, findings


def measure_diversity(models: SuiteModels, subjects: Sequence[Subject], settings: SuiteSettings) -> Interval:
    """Return the mean distance among the judge's embeddings of several images of one subject at λ = 1."""
    few = subjects[: settings.diverse]
    seeds = [
        generate_images(models, few, SuiteCondition(1.0, seed=seed), settings.paint)
        for seed in range(settings.seeds)
    ]
    embeddings = torch.stack([read_pictures(models.judge, some).embeddings for some in seeds])
    return average(measure_seed_distances(embeddings))
