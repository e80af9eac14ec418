"""Train the embedded model's parts: recipe → objective and data → the loop that also trains adapters."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imprompt.lab.making.batches import DrawingBatch, iterate_batches
from imprompt.lab.making.objectives.base import BaseObjective
from imprompt.lab.making.objectives.control import ControlObjective
from imprompt.lab.making.objectives.decoder import DecoderObjective, fit_codec
from imprompt.lab.making.objectives.encoder import EncoderObjective
from imprompt.lab.making.objectives.judge import JudgeObjective
from imprompt.lab.making.objectives.recognizer import RecognizerObjective
from imprompt.lab.making.objectives.style import StyleObjective
from imprompt.lab.making.objectives.transformer import TransformerObjective
from imprompt.lab.making.recipe import (
    BaseRecipe,
    CodecRecipe,
    ControlRecipe,
    DecoderRecipe,
    EncoderRecipe,
    JudgeRecipe,
    RecognizerRecipe,
    StageRecipe,
    StyleRecipe,
    TransformerRecipe,
)
from imprompt.runtime.devices import choose_device
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.loop import Run


def train_stage(recipe: StageRecipe, *, resume: bool = False) -> Path | None:
    """Run a recipe to its end and return the model's folder; Ctrl-C and SIGTERM save first, and return None.

    Log, checkpoints and sample grids are written to `<output>/runs/<stage>/`, and the finished model (with
    averaged weights) to `<output>/`.

    Args:
        recipe: the part and its settings
        resume: go on from the last checkpoint, if there is one
    """
    output = resolve_in_cache(recipe.output)
    if isinstance(recipe, CodecRecipe):
        return fit_codec(recipe, output)
    run = build_run(recipe, output)
    if resume:
        run.resume()
    return output if run.train() else None


def build_run(recipe: StageRecipe, output: Path) -> Run:
    """Build a part's run, at its beginning."""
    objective = build_objective(recipe, output)
    objective.to(choose_device())
    count = objective.count

    def feed(steps: range) -> Iterator[list[DrawingBatch]]:
        return iterate_batches(count, recipe.batch_size, recipe.seed, steps)

    folder = output / "runs" / getattr(recipe, "stage", "run")
    return Run(recipe, objective, feed, folder, output=output, config=recipe.model_dump(mode="json"))


def build_objective(recipe: StageRecipe, output: Path) -> Any:
    """Build the objective of a recipe's part; earlier parts are read from `output`."""
    return OBJECTIVES[type(recipe)](recipe, output)


OBJECTIVES: Mapping[type[StageRecipe], Callable[[Any, Path], Any]] = {
    DecoderRecipe: DecoderObjective,
    BaseRecipe: BaseObjective,
    EncoderRecipe: EncoderObjective,
    JudgeRecipe: JudgeObjective,
    RecognizerRecipe: RecognizerObjective,
    ControlRecipe: ControlObjective,
    StyleRecipe: StyleObjective,
    TransformerRecipe: TransformerObjective,
}
"""Recipe → what it trains; a codec is fitted and not trained."""
