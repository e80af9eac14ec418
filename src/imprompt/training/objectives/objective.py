"""What the training loop asks of a stage."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Generator, Tensor, nn

from imprompt.training.data import Batch, EmojiPictures


class Objective(nn.Module):
    """A model and its loss. Frozen parts have their gradients switched off."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, with learning rates, as the optimiser wants it."""
        raise NotImplementedError

    def pictures(self, folder: Path) -> EmojiPictures:
        """The pictures to be trained on, from the data set in `folder`."""
        return EmojiPictures(folder)

    def loss(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """The loss' parts, scalars; the one named `loss` is minimised. Randomness is `generator`'s."""
        raise NotImplementedError

    def held_out(self) -> dict[str, float]:
        """Figures on concepts that training never sees; the same randomness at every call."""
        return {}

    def picture(self) -> Image.Image | None:
        """A sample grid, with the same randomness at every call."""
        return None

    def export(self, output: Path) -> None:
        """Write the stage's model into the model's folder."""
        raise NotImplementedError
