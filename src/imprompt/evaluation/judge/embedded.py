"""The embedded model's judge: a small convolutional network, and a text encoder trained to its features.

It has seen the training concepts only and shares nothing with the image encoder that conditions the adapter
(recipes/mini-judge.toml). The text encoder was trained beside the locked network
(recipes/mini-judge-text.toml).
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, ConvNextForImageClassification

from imprompt.errors import UnknownModel
from imprompt.evaluation.judge.clip import load_tokenizer, tokenized
from imprompt.evaluation.judge.judge import Judge, load_whole

TEXT = "text"
"""Folder of the text encoder and its tokenizer, in the judge's."""


class EmbeddedJudge(Judge):
    """A ConvNeXt whose class scores, at length one, are the features of a picture.

    Args:
        network: it takes RGB in [-1, 1]
        text: the text encoder, into the same space, if there is one
        tokenizer: the text encoder's
        name: what tables call it
    """

    network: ConvNextForImageClassification

    def __init__(
        self,
        network: ConvNextForImageClassification,
        text: CLIPTextModelWithProjection | None = None,
        tokenizer: CLIPTokenizer | None = None,
        *,
        name: str = "embedded judge",
    ) -> None:
        super().__init__(network, name=name)
        self.image_size = int(network.config.image_size)  # pyright: ignore[reportArgumentType]
        self.text = None if text is None else text.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 size size"]:
        """One picture at the judge's size, in [-1, 1]; another size is resampled (Lanczos)."""
        size = (self.image_size, self.image_size)
        rgb = picture.convert("RGB")
        fitted = rgb if rgb.size == size else rgb.resize(size, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """The network's raw output."""
        return self.network(pixels).logits

    def logits(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """The network's raw output for pixels from anywhere, float32 on the CPU."""
        return self.encode(self.placed(pixels)).float().cpu()

    @property
    def reads_text(self) -> bool:
        """Whether there is a text encoder."""
        return self.text is not None and self.tokenizer is not None

    def tokenize(self, captions: list[str]) -> tuple[dict[str, Tensor], int]:
        """The captions' token ids, and how many captions had to be cut."""
        assert self.text is not None
        assert self.tokenizer is not None
        return tokenized(self.tokenizer, captions, self.text.config.max_position_embeddings)

    @torch.no_grad()
    def encode_text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "captions dim"]:
        """The text encoder's projected output."""
        assert self.text is not None
        return self.text(**tokens).text_embeds

    def to(self, device: torch.device | str) -> "EmbeddedJudge":
        """Move the judge, in place."""
        super().to(device)
        if self.text is not None:
            self.text.to(device)  # pyright: ignore[reportArgumentType]
        return self


def load_judge(folder: Path) -> EmbeddedJudge:
    """Load the judge from a folder with `config.json` and `model.safetensors`, and its `text` if it is there.

    Raises:
        UnknownModel: no such folder, or no judge in it
    """
    if not (folder / "config.json").is_file():
        raise UnknownModel(f"there is no judge in {folder}: train it with recipes/mini-judge.toml")
    network = load_whole(
        "judge", folder, ConvNextForImageClassification.from_pretrained, model_type="convnext"
    )
    if not (folder / TEXT).is_dir():
        return EmbeddedJudge(network)
    text = load_whole(
        "text encoder",
        folder / TEXT,
        CLIPTextModelWithProjection.from_pretrained,
        model_type="clip_text_model",
    )
    tokenizer = load_tokenizer(folder / TEXT, text.config.vocab_size)
    if text.config.projection_dim != network.config.num_labels:
        raise UnknownModel(
            f"the text encoder in {folder / TEXT} is not this judge's: its features are "
            f"{text.config.projection_dim} wide, the judge's {network.config.num_labels}"
        )
    return EmbeddedJudge(network, text, tokenizer)
