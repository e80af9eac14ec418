"""The simple adapter: image tokens behind the text's, through the same keys and values."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.embeddings import ImageEmbeddings
from imprompt.injection.base import Denoise, Injection, Inputs, denoised, put_in_place
from imprompt.injection.text import (
    NEGATIVE,
    POSITIVE,
    both_sides,
    check_counts,
    text_embeddings,
    without_prompts,
)
from imprompt.projection import ImageProjection
from imprompt.projection.base import draw_linears

PREFIX = "image_proj."
"""Of a projection's tensors, as in the official layout."""


class HiddenProjection(ImageProjection):
    """c_i = LayerNorm(reshape(W₂ GELU(W₁ e + b₁) + b₂)): the paper's projection with a layer more.

    It is not published. It gives the simple adapter, which trains nothing but its projection, as many
    parameters as the decoupled one has, so that the two can be compared at equal size.

    Args:
        embedding_dim: width of the image embedding e
        context_dim: width of the text embeddings
        tokens: N of the paper
        hidden: width of the layer between
        generator: randomness of the initial weights; torch's global one if not given
    """

    def __init__(
        self,
        embedding_dim: int,
        context_dim: int,
        tokens: int = 4,
        *,
        hidden: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.takes = {"image_embedding": embedding_dim}
        self.context_dim, self.tokens = context_dim, tokens
        self.proj = nn.Sequential(
            nn.Linear(embedding_dim, hidden), nn.GELU(), nn.Linear(hidden, tokens * context_dim)
        )
        self.norm = nn.LayerNorm(context_dim)
        draw_linears(self, generator)

    def forward(
        self, image_embedding: Float[Tensor, "batch embedding_dim"]
    ) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project image embeddings to image tokens; a zero embedding is "no image"."""
        tokens = self.proj(image_embedding).reshape(-1, self.tokens, self.context_dim)
        return self.norm(tokens)


class ConcatenatedInjection(Injection):
    """output = Attn(Q, [K, K_i], [V, V_i]); the projection alone is trained.

    Args:
        projection: makes image tokens of an image embedding
        pipe: the base's pipeline; nothing of it is changed
    """

    name = "concatenated"

    def __init__(self, projection: ImageProjection, pipe: Any) -> None:
        self.trained = self.projection = projection
        self.unet = pipe.unet

    @contextlib.contextmanager
    def prompted(self, inputs: Inputs) -> Iterator[Denoise]:
        """The text that the U-Net reads is longer by the image tokens."""
        tokens = self.projection(inputs["image_embedding"][:, 0])

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return denoised(self.unet, noisy, times, torch.cat([text, tokens.to(text)], dim=1), added)

        yield denoise

    @torch.no_grad()
    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with the image tokens multiplied by `scale`, the only handle there is: 0 is not the base."""
        self.check_pipeline(pipe)
        check_counts(images, call)
        embeds, weight = text_embeddings(pipe, call), next(self.projection.parameters())
        for name, side in zip((POSITIVE, NEGATIVE), both_sides(images, weight), strict=True):
            tokens = scale * self.projection(side)
            embeds[name] = torch.cat([embeds[name], tokens.to(embeds[name])], dim=1)
        return pipe(**without_prompts(call), **embeds).images

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the projection alone, under the official layout's names; it is no adapter without layers."""
        tensors = {f"{PREFIX}{name}": value for name, value in self.trained.state_dict().items()}
        write_tensors(tensors, path, self.metadata(metadata))

    def restore(self, path: Path) -> None:
        """Read the projection's tensors."""
        tensors = read_tensors(path).tensors
        put_in_place(self.trained, {n.removeprefix(PREFIX): value for n, value in tensors.items()}, path)

    def detach(self) -> None:
        """Nothing of the pipeline was changed."""
