"""The judge of the embedded model: a convolutional network that reads attributes, and tells characters apart.

It shares nothing with the image encoder that conditions: another architecture, another seed, another loss.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextModel

from imprompt.errors import UnknownModel
from imprompt.lab.making.vocabulary import ATTRIBUTES, load_vocabulary

LABELS = ("style", *ATTRIBUTES)
"""What is read off a picture, in the order of label columns."""

HEADS_FILE = "heads.safetensors"


class AttributeHeads(nn.Module):
    """One linear classifier for every attribute, over the vocabulary's words in their order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        words = load_vocabulary().words
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(words(name))) for name in LABELS})

    def forward(self, features: Float[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Attribute → scores of its words, (batch, words)."""
        return {name: head(features) for name, head in self.heads.items()}


class CharacterJudge(nn.Module):
    """Pictures of characters → their attributes, and an embedding in which a character is near itself.

    Attributes:
        network: pictures (batch, 3, 128, 128) in [-1, 1] → features
        heads: features → scores of every attribute's words
        identity: features → embedding
    """

    def __init__(self, network: ConvNextModel, identity_dim: int = 128) -> None:
        super().__init__()
        self.network = network
        width = cast(list[int], network.config.hidden_sizes)[-1]
        self.heads = AttributeHeads(width)
        self.identity = nn.Linear(width, identity_dim)

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Pictures → features."""
        return self.network(pixels.contiguous(memory_format=torch.channels_last)).pooler_output

    def embed(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch identity"]:
        """Pictures → identity embeddings of length one."""
        return F.normalize(self.identity(self.features(pixels)).float(), dim=-1)

    @torch.no_grad()
    def read(self, pixels: Float[Tensor, "batch 3 height width"]) -> Mapping[str, list[str]]:
        """Attribute → the likeliest word for each picture."""
        words = load_vocabulary().words
        scores = self.heads(self.features(pixels))
        return {
            name: [words(name)[i] for i in score.argmax(dim=1).tolist()] for name, score in scores.items()
        }

    def save(self, folder: Path) -> None:
        """Write the network in transformers' format, and the heads beside it."""
        self.network.save_pretrained(folder)
        heads = {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}
        save_file(heads, folder / HEADS_FILE)

    @classmethod
    def load(cls, folder: Path) -> "CharacterJudge":
        """Read what `save` wrote; frozen, in evaluation mode, float32.

        Raises:
            UnknownModel: the folder holds no judge
        """
        if not (folder / HEADS_FILE).is_file():
            raise UnknownModel(f"there is no judge in {folder}")
        network: Any = ConvNextModel.from_pretrained(folder, dtype=torch.float32)
        heads = load_file(folder / HEADS_FILE)
        judge = cls(network, heads["identity.weight"].shape[0])
        judge.load_state_dict({name: value.float() for name, value in heads.items()}, strict=False)
        judge.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return judge


def build_network(
    widths: tuple[int, ...], depths: tuple[int, ...], patch_size: int, image_size: int
) -> ConvNextModel:
    """A ConvNeXt small enough for a processor, with random weights."""
    config = ConvNextConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_stages=len(widths),
        hidden_sizes=list(widths),
        depths=list(depths),
        # Scales near zero are for deep networks: they would keep few layers out of a short training.
        layer_scale_init_value=0.0,
        initializer_range=0.05,
    )
    network = ConvNextModel(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
