"""The embedded model's parts: recipe → objective and data → the loop that adapters are trained with too."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from imprompt.errors import ConfigError
from imprompt.lab.making.batches import DrawingBatch, batches
from imprompt.lab.making.objectives.autoencoding import DecoderObjective, fit_codec
from imprompt.lab.making.objectives.controlling import ControlObjective
from imprompt.lab.making.objectives.denoising import BaseObjective
from imprompt.lab.making.objectives.judging import JudgeObjective
from imprompt.lab.making.objectives.recognising import EncoderObjective
from imprompt.lab.making.objectives.styling import StyleObjective
from imprompt.lab.making.recipe import (
    BaseRecipe,
    CodecRecipe,
    ControlRecipe,
    DecoderRecipe,
    EncoderRecipe,
    JudgeRecipe,
    StageRecipe,
    StyleRecipe,
)
from imprompt.runtime.settings import resolve_in_cache
from imprompt.training.loop import Run


def train_stage(recipe: StageRecipe, *, resume: bool = False) -> Path:
    """Run a recipe to its end, or to Ctrl-C / SIGTERM, which save first; return the model's folder.

    Writes log, checkpoints and sample grids to `<output>/runs/<stage>/`, and when finished the stage's model
    (with averaged weights) to `<output>/`.

    Raises:
        ConfigError: nothing to resume
    """
    output = resolve_in_cache(recipe.output)
    if isinstance(recipe, CodecRecipe):
        return fit_codec(recipe, output)
    run = build_run(recipe, output)
    if resume and not run.resume():
        raise ConfigError(f"nothing to resume in {run.folder}: start the run without --resume")
    run.train()
    return output


def build_run(recipe: StageRecipe, output: Path) -> Run:
    """A part's run, at its beginning."""
    objective = build_objective(recipe, output)
    objective.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    count = len(objective.drawings)

    def feed(steps: range) -> Iterator[list[DrawingBatch]]:
        return batches(count, recipe.batch_size, recipe.seed, steps)

    folder = output / "runs" / getattr(recipe, "stage", "run")
    return Run(recipe, objective, feed, folder, output=output, config=recipe.model_dump(mode="json"))


def build_objective(recipe: StageRecipe, output: Path) -> Any:
    """The objective of a recipe's part; earlier parts are read from `output`."""
    return OBJECTIVES[type(recipe)](recipe, output)


OBJECTIVES: Mapping[type[StageRecipe], Callable[[Any, Path], Any]] = {
    DecoderRecipe: DecoderObjective,
    BaseRecipe: BaseObjective,
    EncoderRecipe: EncoderObjective,
    JudgeRecipe: JudgeObjective,
    ControlRecipe: ControlObjective,
    StyleRecipe: StyleObjective,
}
"""What each recipe trains; a codec is fitted, not trained."""
