"""The stages' losses: autoencoding, contrastive (pair), denoising (base), styling (LoRA), controlling
(ControlNet), judging; and that of every adapter, image prompting.
"""

from pathlib import Path

from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import (
    BaseRecipe,
    ControlRecipe,
    DecoderRecipe,
    JudgeRecipe,
    JudgeTextRecipe,
    PairRecipe,
    Recipe,
    StyleRecipe,
)

__all__ = ["StageObjective", "build_objective"]


def build_objective(recipe: Recipe, output: Path) -> StageObjective:
    """The objective of a recipe's stage; earlier stages are read from `output`."""
    if isinstance(recipe, PairRecipe):
        from imprompt.training.objectives.contrastive import PairObjective

        return PairObjective(recipe)
    if isinstance(recipe, DecoderRecipe):
        from imprompt.training.objectives.autoencoding import DecoderObjective

        return DecoderObjective(recipe, output)
    if isinstance(recipe, BaseRecipe):
        from imprompt.training.objectives.denoising import BaseObjective

        return BaseObjective(recipe, output)
    if isinstance(recipe, StyleRecipe):
        from imprompt.training.objectives.styling import StyleObjective

        return StyleObjective(recipe, output)
    if isinstance(recipe, ControlRecipe):
        from imprompt.training.objectives.controlling import ControlObjective

        return ControlObjective(recipe, output)
    if isinstance(recipe, JudgeRecipe):
        from imprompt.training.objectives.judging import JudgeObjective

        return JudgeObjective(recipe)
    if isinstance(recipe, JudgeTextRecipe):
        from imprompt.training.objectives.judging_text import JudgeTextObjective

        return JudgeTextObjective(recipe, output)
    raise TypeError(f"{type(recipe).__name__} is not trained by descent")
