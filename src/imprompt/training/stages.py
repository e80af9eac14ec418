"""The embedded model's stages: recipe → objective and data → the loop that adapters are trained with too."""

from collections.abc import Iterator
from pathlib import Path

import torch

from imprompt.errors import ConfigError
from imprompt.settings import in_cache
from imprompt.training.data import Batch, EmojiBatches
from imprompt.training.loop import Run
from imprompt.training.objectives import StageObjective, build_objective
from imprompt.training.objectives.autoencoding import fit_codec
from imprompt.training.recipe import CodecRecipe, Recipe


def train_stage(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run a recipe to its end, or to Ctrl-C / SIGTERM, which save first; return the model's folder.

    Writes log, checkpoints and sample grids to `<output>/runs/<stage>/`, and when finished the stage's model
    (with averaged weights) to `<output>/`.

    Raises:
        ConfigError: nothing to resume
    """
    output = in_cache(recipe.output)
    if isinstance(recipe, CodecRecipe):
        return fit_codec(recipe, output)
    run = stage_run(recipe, output, build_objective(recipe, output))
    if resume and not run.resume():
        raise ConfigError(f"nothing to resume in {run.folder}: start the run without --resume")
    run.go()
    return output


def stage_run(recipe: Recipe, output: Path, objective: StageObjective) -> Run:
    """A stage's run, at its beginning."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective.to(device)
    pictures = objective.pictures(in_cache(recipe.data))
    batches = EmojiBatches(pictures, recipe.batch_size, seed=recipe.seed, mixture=recipe.mixture)

    def feed(steps: range) -> Iterator[list[Batch]]:
        return ([batches[step]] for step in steps)

    folder = output / "runs" / getattr(recipe, "stage", "run")
    return Run(recipe, objective, feed, folder, output=output, config=recipe.model_dump(mode="json"))
