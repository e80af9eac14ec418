"""The interface between the training loop and what it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn


class Objective(nn.Module):
    """A model and its loss. Frozen parts have their gradients switched off.

    Attributes:
        autocasts: whether "bf16" and "fp16" mean autocasting of float32 weights
        restores: whether `restore` loads, to the bit, the weights that `save` wrote
    """

    autocasts = False
    restores = False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters as the optimizer's groups; "name" is for the log."""
        raise NotImplementedError

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the terms of the loss, means over the batch; the one named `loss` is minimized."""
        raise NotImplementedError

    def differentiate(self, batch: Any, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Pass the loss to `backward` in the context that it needs; return the loss terms."""
        parts = self.loss(batch)
        backward(parts["loss"])
        return parts

    def measure_held_out(self) -> dict[str, float]:
        """Return figures of held-out samples, with the same randomness at every call."""
        return {}

    def draw_samples(self) -> Image.Image | None:
        """Draw a sample grid, with the same randomness at every call."""
        return None

    def draw_and_measure(self) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the sample grid and measure it."""
        return self.draw_samples(), {}

    def save(self, folder: Path) -> None:
        """Write the model into a checkpoint's folder, if it is useful before the end of the run."""

    def restore(self, folder: Path) -> None:
        """Load the weights that `save` wrote."""
        raise NotImplementedError

    def export(self, output: Path) -> None:
        """Write the finished model."""
        raise NotImplementedError
