"""What the objectives of the embedded model's parts share."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.recipe import StageRecipe
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.objectives.objective import Objective


class StageObjective(Objective):
    """An objective on drawings; it seeds torch, so that a part's initial weights follow from its recipe.

    Attributes:
        drawings: for training
    """

    autocasts = True

    def __init__(self, recipe: StageRecipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe: Any = recipe
        self.drawings = Drawings(resolve_in_cache(recipe.data), "training")

    def compile_trained(self, module: nn.Module) -> list[Any]:
        """Return the trained module, compiled if the recipe says so, in a list.

        The list keeps it out of the module tree, where a compiled module would be a second copy of its own.
        """
        return [torch.compile(module) if self.recipe.compile else module]

    @property
    def count(self) -> int:
        """The number of rows from which batches are made."""
        return len(self.drawings)

    @property
    def device(self) -> torch.device:
        """The device of the trained parameters."""
        return next(self.parameters()).device

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return all parameters that are not frozen, at one learning rate."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "lr": self.recipe.learning_rate}]

    def pixels(self, batch: DrawingBatch) -> Float[Tensor, "batch 3 size size"]:
        """Return a batch's drawings as pixels in [-1, 1]."""
        return to_pixels(self.drawings.pictures[batch.rows]).to(self.device)
