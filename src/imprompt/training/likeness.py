"""How like its reference, and its prompt, a picture is: cosines of a CLIP model or the adapter's encoder.

The adapter's own encoder is what it was trained to please, so its figure says whether the adapter works, not
how well; a judge that training knows nothing of is `watch.judge`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from imprompt.errors import UnknownModel
from imprompt.inputs.encoder import ImageEncoder, load_image_encoder


class Likeness:
    """A judge of pictures.

    Args:
        name: a CLIP model, a folder or a hub id; empty for the adapter's own encoder
        encoder: the adapter's own; without it, and without a name, nothing is measured

    Raises:
        UnknownModel: no such CLIP model
    """

    def __init__(self, name: str, encoder: ImageEncoder | None, device: torch.device) -> None:
        self.encoder, self.texts = encoder, None
        if name:
            self.encoder, self.texts = load_image_encoder(name).to(device), load_text_tower(name)

    def figures(
        self, pictures: Sequence[Image.Image], references: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, float]:
        """Mean cosine of each picture with its reference, with the next one's, and with its prompt."""
        if self.encoder is None:
            return {}
        drawn, shown = (
            self.encoder.encode(self.encoder.pixels(side)).float() for side in (pictures, references)
        )
        figures = {"similarity to reference": mean_cosine(drawn, shown)}
        if len(pictures) > 1:
            figures["similarity to a shuffled reference"] = mean_cosine(drawn, shown.roll(1, dims=0))
        if self.texts is not None and all(prompts):
            figures["similarity to prompt"] = mean_cosine(drawn.cpu(), self.embedded(prompts))
        return figures

    @torch.no_grad()
    def embedded(self, prompts: Sequence[str]) -> Float[Tensor, "prompts d"]:
        """Text embeddings in the pictures' space."""
        assert self.texts is not None
        model, tokenizer = self.texts
        return model(
            **tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        ).text_embeds


def load_text_tower(name: str) -> tuple[Any, Any]:
    """Load a CLIP model's text encoder and its tokenizer.

    Raises:
        UnknownModel: it is not here and cannot be fetched
    """
    try:
        return CLIPTextModelWithProjection.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UnknownModel(f"no CLIP model at {name}: {str(error).splitlines()[0]}") from error


def mean_cosine(one: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> float:
    """The mean cosine of corresponding rows."""
    return float(F.cosine_similarity(one, other).mean())
