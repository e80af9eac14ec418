"""Suites: what is generated, from what, and which figures come of it.

`evaluate_mini` asks of the embedded model: given one drawing of a concept that it has never seen, and no
text, does it paint that concept? Floor (λ = 0) and ceilings (a light copy of the reference; the reference
through the autoencoder) are scored the same way, so that every figure has its scale beside it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imprompt import mini
from imprompt.checkpoint import EMBEDDED, load_adapter
from imprompt.evaluation.against import against_figures, load_earlier
from imprompt.evaluation.asking import Asked, draw_examples
from imprompt.evaluation.console import print_summary
from imprompt.evaluation.copying import Seen, copy_figures, load_seen
from imprompt.evaluation.exhibits import (
    EXHIBITS,
    Exhibited,
    exhibited_references,
    extremes,
    write_every_concept,
    write_exhibits,
)
from imprompt.evaluation.judge import Judge, is_self, load_judge
from imprompt.evaluation.metrics import COPY_RATIO
from imprompt.evaluation.mini_report import mini_report
from imprompt.evaluation.pictures import Drawing, HeldOut, light_copy, load_held_out
from imprompt.evaluation.population import first_pictures, kid_figures
from imprompt.evaluation.report import make_folder, write_report, write_scores
from imprompt.evaluation.sampling import (
    Condition,
    Models,
    Painter,
    Pictures,
    Settings,
    count_pictures,
    through_codec,
)
from imprompt.evaluation.scoring import (
    CODEC,
    COPY,
    FLOOR,
    MAIN,
    PROMPTED,
    WITH_TEXT,
    Galleries,
    Score,
    over_known,
    score_pictures,
    summarise,
    under,
)
from imprompt.evaluation.tradeoff import curve_conditions, curve_figures
from imprompt.progress import counted

FULL = Settings()
SMALL = Settings(seeds=1, steps=15, curve=24)
SMALL_CONCEPTS = 60


def evaluate_mini(
    *,
    output: Path,
    weights: Path | None = None,
    adapter: str = "mini",
    small: bool = False,
    seeds: int | None = None,
    steps: int | None = None,
    guidance_scale: float = 7.5,
    concepts: int | None = None,
    batch_size: int = 48,
    against: Path | None = None,
) -> dict[str, Any]:
    """Measure the embedded model on held-out concepts; offline, from what is in this package alone.

    Writes to `output`: the report (`index.html`, `index-small.html`, `summary.json`), a line per picture
    (`scores.csv`, `scores.parquet`), `contact-sheet.png` (24 concepts), `figure.png` (the README's),
    `every-concept.png`; prints the summary.

    Args:
        output: a folder, made if it is not there
        weights: folder of the embedded model, if not the shipped one
        adapter: "mini" or "mini-plus", the model's own, or a file for it, as `imprompt train` writes it
        small: 60 concepts, one seed, 15 steps: a minute or two on two cores
        seeds: pictures of each concept with image prompt alone; the other conditions get one
        steps: denoising steps
        guidance_scale: w
        concepts: how many; all if not given, or 60 if small
        batch_size: pictures in one call of the pipeline
        against: folder of an earlier report, with the same settings, from which this one is subtracted

    Raises:
        ConfigError: `against` cannot be compared with
        OutputError: the folder cannot be written
        UnknownModel: weights, judge or adapter are not there
        CheckpointError, AdapterMismatch: no adapter, or one for another base
        MissingExtra: torchmetrics is not installed
    """
    make_folder(output)
    folder = mini.WEIGHTS if weights is None else weights
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge = load_judge(folder / "judge").to(device)
    is_own = adapter in EMBEDDED
    measured = mini.adapter(adapter, weights=folder) if is_own else load_adapter(adapter).float()
    name = Path(adapter).name if Path(adapter).is_file() else adapter
    models = Models(mini.pipeline(weights=folder).to(device), measured.to(device), judge, name)
    usual = SMALL if small else FULL
    settings = replace(
        usual,
        seeds=usual.seeds if seeds is None else seeds,
        steps=usual.steps if steps is None else steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
    )
    several = SMALL_CONCEPTS if small and concepts is None else concepts
    return evaluate(models, load_held_out(), settings, output=output, concepts=several, against=against)


def evaluate(
    models: Models,
    held_out: HeldOut,
    settings: Settings,
    *,
    output: Path,
    concepts: int | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """As `evaluate_mini`, on any models and held-out drawings."""
    started = time.monotonic()
    references = held_out.references(concepts)
    used, judge = asdict(settings) | {"concepts": len(references)}, judge_facts(models)
    earlier = None if against is None else load_earlier(against, used, judge)
    exhibited = exhibited_references(held_out, references)
    made, exhibits_made = paint_all(models, held_out, references, exhibited, settings)
    seen = load_seen(models.judge)
    scores = score_all(models, held_out, references, made, settings, seen)
    summary = {
        "suite": "mini",
        "adapter": adapter_facts(models),
        "settings": used,
        "judge": judge,
        **summarise([score for score in scores if score.condition in MAIN], settings),
        "diversity": over_known(under(scores, PROMPTED), lambda score: score.distance),
        "curve": curve_figures(scores, settings),
        "kid": kid_figures(models.judge, *real_and_made(held_out, made)),
        "copies": copies(models.judge, held_out, references, scores, seen),
        "against": None if earlier is None else against_figures(scores, earlier),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_scores(scores, output)
    write_every_concept(held_out, references, made[PROMPTED], output)
    contacts = write_exhibits(held_out, exhibited, exhibits_made, output)
    cases = extremes(held_out, references, made[PROMPTED], scores)
    write_report(mini_report(summary, scores, cases, contacts), output, summary)
    print_summary(summary)
    return summary


def paint_all(
    models: Models,
    held_out: HeldOut,
    references: Sequence[Drawing],
    exhibited: Exhibited,
    settings: Settings,
) -> tuple[dict[str, Pictures], list[Pictures]]:
    """Every picture: condition by condition what is scored, and what is shown."""
    shown = [*exhibited.contacts, *exhibited.featured]
    few = references[: settings.curve]
    scored = [(references, condition) for condition in conditions(settings)]
    scored += [(few, condition) for condition in curve_conditions(settings) if condition.name != WITH_TEXT]
    also = [(shown, condition) for condition in EXHIBITS]
    painter = Painter(models, held_out, settings)
    with counted("pictures", count_pictures(scored + also)) as advance:
        made = {condition.name: painter.paint(several, condition, advance) for several, condition in scored}
        return made, [painter.paint(several, condition, advance) for several, condition in also]


def score_all(
    models: Models,
    held_out: HeldOut,
    references: Sequence[Drawing],
    made: Mapping[str, Pictures],
    settings: Settings,
    seen: Seen | None = None,
) -> list[Score]:
    """Score what was made, and with it the ceilings: light copies, and references through the autoencoder."""
    plain = [held_out.on_white(reference) for reference in references]
    copies = [[light_copy(picture)] for picture in plain]
    rebuilt = [[picture] for picture in through_codec(models, plain)]
    features = None if seen is None else seen.features
    asking, steps, guidance = settings.asking, settings.steps, settings.guidance_scale
    examples = draw_examples(models.pipe, asking, steps=steps, guidance_scale=guidance)
    galleries = Galleries(held_out, models.judge, asking, Asked(models.judge, examples), seen=features)
    asked = {condition.name: condition for condition in [*conditions(settings), *curve_conditions(settings)]}
    every = {**made, COPY: copies, CODEC: rebuilt}
    return [
        score
        for name, pictures in every.items()
        for score in score_pictures(
            galleries,
            references[: len(pictures)],
            name,
            pictures,
            scale=float(asked[name].scale) if name in asked else None,
        )
    ]


def conditions(settings: Settings) -> list[Condition]:
    """What is scored: image prompt alone, none, and with text."""
    return [
        Condition(PROMPTED, 1.0, seeds=settings.seeds),
        Condition(FLOOR, 0.0),
        Condition(WITH_TEXT, 1.0, settings.asking),
    ]


def adapter_facts(models: Models) -> dict[str, Any]:
    """What is measured."""
    adapter = models.adapter
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    return {"name": models.name, "tokens": adapter.projection.tokens, "parameters": parameters}


def judge_facts(models: Models) -> dict[str, Any]:
    """Who judges, and whether that is the encoder that conditions."""
    judge = models.judge
    return {
        "name": judge.name,
        "fingerprint": judge.fingerprint,
        "reads text": judge.reads_text,
        "self": is_self(judge, models.adapter.image_encoder),
    }


def real_and_made(
    held_out: HeldOut, made: Mapping[str, Pictures]
) -> tuple[list[Image.Image], dict[str, list[Image.Image]]]:
    """All held-out drawings, and one picture of each concept with its image prompt, and without."""
    drawings = [held_out.on_white(drawing) for drawing in held_out.drawings]
    return drawings, {name: first_pictures(made[name]) for name in (PROMPTED, FLOOR)}


def copies(
    judge: Judge,
    held_out: HeldOut,
    references: Sequence[Drawing],
    scores: Sequence[Score],
    seen: Seen | None,
) -> dict[str, Any] | None:
    """The share of copies; None where the training drawings are not at hand."""
    prompted = under(scores, PROMPTED)
    share = over_known(
        prompted, lambda score: None if score.copy_ratio is None else float(score.copy_ratio < COPY_RATIO)
    )
    return copy_figures(judge, seen, share, [held_out.on_white(one) for one in references])
