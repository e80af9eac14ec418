"""What the training loop asks of whatever is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn


class Objective(nn.Module):
    """A model and its loss. Frozen parts have their gradients switched off.

    Attributes:
        autocasts: whether "bf16" and "fp16" mean autocasting of float32 weights, or are seen to by itself
        restores: whether `restore` brings back, to the bit, what `save` wrote
    """

    autocasts = False
    restores = False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, with learning rates, as the optimiser wants it; "name" is for the log."""
        raise NotImplementedError

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """The loss' parts, means over the batch; the one named `loss` is minimised."""
        raise NotImplementedError

    def differentiate(self, batch: Any, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Hand the loss to `backward`, in whatever context that needs; return its parts."""
        parts = self.loss(batch)
        backward(parts["loss"])
        return parts

    def held_out(self) -> dict[str, float]:
        """Figures on samples that training never sees; the same randomness at every call."""
        return {}

    def picture(self) -> Image.Image | None:
        """A sample grid; the same randomness at every call."""
        return None

    def look(self) -> tuple[Image.Image | None, dict[str, float]]:
        """The sample grid, and what can be measured on it."""
        return self.picture(), {}

    def save(self, folder: Path) -> None:
        """Write the model into a checkpoint's folder, if it is of use before the run's end."""

    def restore(self, folder: Path) -> None:
        """Put the weights that `save` wrote in place again."""
        raise NotImplementedError

    def export(self, output: Path) -> None:
        """Write the finished model."""
        raise NotImplementedError
