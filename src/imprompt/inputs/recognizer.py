"""The embedded model's face model: a small network that knows a character again in other styles.

It takes the place that InsightFace has for photographs. It reads the embedding of the embedded model's image
encoder. recipes/mini-recognizer.toml trains it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.errors import UnknownModel
from imprompt.inputs.encoder import ImageEncoder
from imprompt.inputs.faces import Face

RECOGNIZER_FILE = "recognizer.safetensors"


class CharacterRecognizer(nn.Module):
    """e = W₂ GELU(W₁ (z - μ) / σ) / ‖…‖: a character's pictures in all styles have nearly one embedding.

    z is the image encoder's embedding; μ and σ are its mean and deviation over the training pictures.

    Args:
        input_dim: width of z
        hidden_dim: width of the hidden layer
        embedding_dim: width of e
        dropout: share of the numbers that are dropped before each layer in training
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, input_dim: int, hidden_dim: int, embedding_dim: int, dropout: float | int = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("deviation", torch.ones(input_dim))
        self.hidden = nn.Linear(input_dim, hidden_dim)
        self.embedding = nn.Linear(hidden_dim, embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, image_embeddings: Float[Tensor, "*batch input_dim"]
    ) -> Float[Tensor, "*batch embedding_dim"]:
        """Return embeddings of length one."""
        normalized = (image_embeddings.float() - self.mean) / self.deviation
        hidden = F.gelu(self.hidden(self.dropout(normalized)))
        return F.normalize(self.embedding(self.dropout(hidden)).float(), dim=-1)

    def save(self, folder: Path) -> None:
        """Write the weights."""
        save_file(self.state_dict(), folder / RECOGNIZER_FILE)

    @classmethod
    def load(cls, folder: Path) -> "CharacterRecognizer":
        """Load what `save` wrote, frozen, in evaluation mode and float32.

        Raises:
            UnknownModel: the folder holds no recognizer
        """
        if not (folder / RECOGNIZER_FILE).is_file():
            raise UnknownModel(
                f"there is no recognizer in {folder}: train it with recipes/mini-recognizer.toml"
            )
        tensors = {name: value.float() for name, value in load_file(folder / RECOGNIZER_FILE).items()}
        hidden_dim, input_dim = tensors["hidden.weight"].shape
        recognizer = cls(input_dim, hidden_dim, len(tensors["embedding.weight"]))
        recognizer.load_state_dict(tensors)
        return recognizer.requires_grad_(False).eval()


class CharacterEmbedder:
    """A face embedder for the embedded model's characters, whose face is the whole picture.

    Args:
        recognizer: the network
        encoder: the image encoder that it was trained with
    """

    def __init__(self, recognizer: CharacterRecognizer, encoder: ImageEncoder) -> None:
        self.recognizer, self.encoder = recognizer, encoder

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures embedding_dim"]:
        """Return the embeddings of upright RGB pictures."""
        return self.recognizer(self.encoder.encode(self.encoder.pixels(pictures)))

    def __call__(self, picture: Image.Image) -> Face:
        """Return the embedding of an upright RGB picture, and the picture as its crop."""
        return Face(self.embed([picture])[0], picture)
