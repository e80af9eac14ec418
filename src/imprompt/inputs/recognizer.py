"""The embedded model's face model: a convolutional network that knows a character again.

It takes the place that InsightFace has for photographs. recipes/mini-recognizer.toml trains it.
"""

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextModel

from imprompt.errors import UnknownModel
from imprompt.inputs.crop import encoder_pixels
from imprompt.inputs.faces import Face

EMBEDDING_FILE = "embedding.safetensors"

HALF = (0.5, 0.5, 0.5)
"""Mean and deviation of the network's pixels, which are in [-1, 1]."""


class CharacterRecognizer(nn.Module):
    """e = W f(pixels) / ‖W f(pixels)‖: a character's pictures in all styles have nearly one embedding.

    Attributes:
        network: pictures → features
        embedding: features → embedding
    """

    def __init__(self, network: ConvNextModel, embedding_dim: int) -> None:
        super().__init__()
        self.network = network
        width = cast(list[int], network.config.hidden_sizes)[-1]
        self.embedding = nn.Linear(width, embedding_dim)

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding_dim"]:
        """Return embeddings of length one of pictures in [-1, 1]."""
        features = self.network(pixels.contiguous(memory_format=torch.channels_last)).pooler_output
        return F.normalize(self.embedding(features).float(), dim=-1)

    def save(self, folder: Path) -> None:
        """Write the network in transformers' format, and the last layer."""
        self.network.save_pretrained(folder)
        save_file(self.embedding.state_dict(), folder / EMBEDDING_FILE)

    @classmethod
    def load(cls, folder: Path) -> "CharacterRecognizer":
        """Load what `save` wrote, frozen, in evaluation mode and float32.

        Raises:
            UnknownModel: the folder holds no recognizer
        """
        if not (folder / EMBEDDING_FILE).is_file():
            raise UnknownModel(
                f"there is no recognizer in {folder}: train it with recipes/mini-recognizer.toml"
            )
        last = load_file(folder / EMBEDDING_FILE)
        recognizer = cls(ConvNextModel.from_pretrained(folder, dtype=torch.float32), len(last["weight"]))
        recognizer.embedding.load_state_dict({name: value.float() for name, value in last.items()})
        return recognizer.requires_grad_(False).eval()


class CharacterEmbedder:
    """A face embedder for the embedded model's characters, whose face is the whole picture.

    Args:
        recognizer: the network
    """

    def __init__(self, recognizer: CharacterRecognizer) -> None:
        self.recognizer = recognizer
        self.size = int(cast(Any, recognizer.network.config).image_size)

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> Face:
        """Return the embedding of an upright RGB picture, and the picture as its crop."""
        pixels = encoder_pixels(picture, self.size, mean=HALF, std=HALF, crop="stretch")
        return Face(self.recognizer(pixels[None])[0], picture)
