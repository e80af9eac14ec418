"""The judge: the image encoder that scores pictures. It is not the one that conditions them.

Judging with the conditioning encoder rewards whatever that encoder likes. Ours is a convolutional network,
trained on the training concepts only, with a seed of its own (recipes/mini-judge.toml).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import ConvNextForImageClassification

from imprompt.errors import UnknownModel

BATCH_SIZE = 256


class Judge:
    """A frozen ConvNeXt whose class scores, at length one, are the features of a picture.

    Args:
        network: put into evaluation mode and frozen, in place; it takes RGB in [-1, 1]
    """

    def __init__(self, network: ConvNextForImageClassification) -> None:
        self.network = network.eval().requires_grad_(False)
        self.image_size = int(network.config.image_size)  # pyright: ignore[reportArgumentType]

    def features(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures dim"]:
        """Features of square pictures, of length one, on the CPU; other sizes are resampled (Lanczos)."""
        pixels = torch.stack([self.pixels(picture) for picture in pictures]).split(BATCH_SIZE)
        return torch.cat([F.normalize(self.logits(batch), dim=-1) for batch in pixels])

    @torch.no_grad()
    def logits(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """The network's raw output, float32 on the CPU."""
        return self.network(pixels.to(self.network.device, self.network.dtype)).logits.float().cpu()

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 size size"]:
        """One picture at the judge's size, in [-1, 1]."""
        size = (self.image_size, self.image_size)
        rgb = picture.convert("RGB")
        fitted = rgb if rgb.size == size else rgb.resize(size, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def load_judge(folder: Path) -> Judge:
    """Load the judge from a folder with `config.json` and `model.safetensors`, for float32.

    Raises:
        UnknownModel: no such folder, or no judge in it
    """
    if not (folder / "config.json").is_file():
        raise UnknownModel(f"there is no judge in {folder}: train it with recipes/mini-judge.toml")
    try:
        network = ConvNextForImageClassification.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UnknownModel(f"no judge in {folder}: {str(error).splitlines()[0]}") from error
    return Judge(network)
