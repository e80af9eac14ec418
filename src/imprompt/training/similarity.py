"""How similar images are to their references and prompts: cosines of a CLIP model or the adapter's encoder.

The adapter is trained on its own encoder, whose figure therefore shows whether the adapter works, but not how
well; `watch.judge` names an independent judge.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
from imprompt.runtime.foreign_models import explain_failure


class SimilarityJudge:
    """A judge of images.

    Args:
        name: a CLIP model, a folder or a hub id; empty for the adapter's own encoder
        encoder: the adapter's own encoder; without it and without a name nothing is measured

    Raises:
        UnknownModel: no such CLIP model
    """

    def __init__(self, name: str, encoder: ImageEncoder | None, device: torch.device) -> None:
        self.encoder, self.texts = encoder, None
        if name:
            self.encoder, self.texts = load_image_encoder(name).to(device), load_text_tower(name)

    def measure(
        self, pictures: Sequence[Image.Image], references: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, float]:
        """Return mean cosines of images with their references, shuffled references, and prompts."""
        if self.encoder is None:
            return {}
        image_embeddings, reference_embeddings = (
            self.encoder.encode(self.encoder.pixels(side)).float() for side in (pictures, references)
        )
        figures = {"similarity to reference": mean_cosine(image_embeddings, reference_embeddings)}
        if len(pictures) > 1:
            figures["similarity to a shuffled reference"] = mean_cosine(
                image_embeddings, reference_embeddings.roll(1, dims=0)
            )
        if self.texts is not None and all(prompts):
            figures["similarity to prompt"] = mean_cosine(image_embeddings.cpu(), self.embed_prompts(prompts))
        return figures

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "prompts d"]:
        """Return text embeddings in the space of the image embeddings."""
        assert self.texts is not None
        model, tokenizer = self.texts
        return model(
            **tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        ).text_embeds


def load_text_tower(name: str) -> tuple[Any, Any]:
    """Load the text encoder and the tokenizer of a CLIP model.

    Raises:
        UnknownModel: it is not here and cannot be fetched
    """
    with explain_failure(f"no CLIP model at {name}"):
        return CLIPTextModelWithProjection.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def mean_cosine(one: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> float:
    """Return the mean cosine of corresponding rows."""
    return float(F.cosine_similarity(one, other).mean())
