"""The judge of the embedded model: a convolutional network that reads the attributes of characters.

It shares nothing with the image encoder that conditions: architecture, seed and loss differ
(recipes/mini-judge.toml). It needs no text encoder: the features of a caption are the words that it names.

    picture ↦ (softmax(heads[a](f)) for every attribute a)      caption ↦ (1 for every word that it names)
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextModel

from imprompt.errors import UnknownModel
from imprompt.evaluation.judges.judge import Judge, load_complete_model

Words = Mapping[str, Mapping[str, str]]
"""Attribute → word → the regular expression that finds the word in a caption, in the order of the heads."""

HEADS_FILE = "heads.safetensors"
WORDS_FILE = "words.json"


class AttributeHeads(nn.Module):
    """A linear classifier for every attribute, over its words in their order."""

    def __init__(self, width: int, words: Words) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(some)) for name, some in words.items()})

    def forward(self, features: Float[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return the scores of every attribute's words, (batch, words)."""
        return {name: head(features) for name, head in self.heads.items()}


class CharacterJudge(nn.Module):
    """A network that reads the attributes of characters and embeds them so that a character is near itself.

    Attributes:
        network: pictures (batch, 3, 128, 128) in [-1, 1] → features
        words: the attributes and words that it reads
        heads: features → scores of every attribute's words
        identity: features → embedding
    """

    def __init__(self, network: ConvNextModel, words: Words, identity_dim: int = 128) -> None:
        super().__init__()
        self.network = network
        self.words = words
        width = cast(list[int], network.config.hidden_sizes)[-1]
        self.heads = AttributeHeads(width, words)
        self.identity = nn.Linear(width, identity_dim)

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the features of pictures."""
        return self.network(pixels.contiguous(memory_format=torch.channels_last)).pooler_output

    def embed(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch identity"]:
        """Return identity embeddings of length one."""
        return F.normalize(self.identity(self.features(pixels)).float(), dim=-1)

    def scores(self, pixels: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """Return the scores of every attribute's words, (batch, words)."""
        return self.heads(self.features(pixels))

    @torch.no_grad()
    def read(self, pixels: Float[Tensor, "batch 3 height width"]) -> Mapping[str, list[str]]:
        """Return the likeliest word of every attribute for each picture."""
        return {name: self.likeliest(name, score) for name, score in self.scores(pixels).items()}

    def likeliest(self, attribute: str, scores: Float[Tensor, "batch words"]) -> list[str]:
        """Return the word with the highest score for each picture."""
        words = list(self.words[attribute])
        return [words[place] for place in scores.argmax(dim=1).tolist()]

    def save(self, folder: Path) -> None:
        """Write the network in transformers' format, with its heads and words."""
        self.network.save_pretrained(folder)
        heads = {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}
        save_file(heads, folder / HEADS_FILE)
        (folder / WORDS_FILE).write_text(json.dumps(self.words, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "CharacterJudge":
        """Load what `save` wrote, frozen, in evaluation mode and float32.

        Raises:
            UnknownModel: the folder holds no judge
        """
        if not (folder / HEADS_FILE).is_file() or not (folder / WORDS_FILE).is_file():
            raise UnknownModel(f"there is no judge in {folder}: train it with recipes/mini-judge.toml")
        network = load_complete_model("judge", folder, ConvNextModel.from_pretrained, model_type="convnext")
        words = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
        heads = load_file(folder / HEADS_FILE)
        judge = cls(network, words, heads["identity.weight"].shape[0])
        judge.load_state_dict({name: value.float() for name, value in heads.items()}, strict=False)
        judge.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return judge


def build_network(
    widths: tuple[int, ...], depths: tuple[int, ...], patch_size: int, image_size: int
) -> ConvNextModel:
    """Build a ConvNeXt small enough for a processor, with random weights."""
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
    return ConvNextModel(config)


class EmbeddedJudge(Judge):
    """The judge of characters with the interface of every other judge.

    A picture's features are the probabilities of all words. A caption's features are 1 for the words that it
    names. So two pictures are alike as far as they share attributes, and a picture fits a caption as far as
    it shows what the caption names.
    """

    network: CharacterJudge

    def __init__(self, network: CharacterJudge, *, name: str = "embedded judge") -> None:
        super().__init__(network, name=name)
        self.image_size = int(cast(Any, network.network.config).image_size)

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 size size"]:
        """Return one picture at the judge's size, in [-1, 1]; another size is resampled (Lanczos)."""
        size = (self.image_size, self.image_size)
        rgb = picture.convert("RGB")
        fitted = rgb if rgb.size == size else rgb.resize(size, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch words"]:
        """Return the probabilities of all words, attribute after attribute."""
        scores = self.network.scores(pixels)
        return torch.cat([score.float().softmax(dim=1) for score in scores.values()], dim=1)

    @property
    def reads_text(self) -> bool:
        """True: captions have features."""
        return True

    def tokenize(self, captions: list[str]) -> tuple[dict[str, Tensor], int]:
        """Return which words each caption names, (captions, words); no caption is cut."""
        patterns = [pattern for words in self.network.words.values() for pattern in words.values()]
        named = [[bool(re.search(pattern, caption)) for pattern in patterns] for caption in captions]
        return {"named": torch.tensor(named)}, 0

    def encode_text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "captions words"]:
        """Return 1 for every word that a caption names."""
        return tokens["named"].float()


def load_judge(folder: Path) -> EmbeddedJudge:
    """Load the judge from a folder that `CharacterJudge.save` wrote.

    Raises:
        UnknownModel: there is no such folder, or no judge in it
    """
    return EmbeddedJudge(CharacterJudge.load(folder))
