"""The simple adapter: image tokens behind the text's, through the same keys and values."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.generation.pipeline_results import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.projection import ImageProjection
from imprompt.training.mechanisms.base import Denoise, Inputs, denoised, put_in_place
from imprompt.training.mechanisms.projected import PREFIX, ProjectedMechanism
from imprompt.training.mechanisms.text import NEGATIVE, POSITIVE, text_embeddings, without_prompts


class ConcatenatedMechanism(ProjectedMechanism):
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
        tokens = self.projected(inputs)

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return denoised(self.unet, noisy, times, torch.cat([text, tokens.to(text)], dim=1), added)

        yield denoise

    @torch.no_grad()
    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with the image tokens multiplied by `scale`, the only handle there is: 0 is not the base."""
        sides = self.both_sides(pipe, images, call)
        embeds = text_embeddings(pipe, call)
        for name, tokens in zip((POSITIVE, NEGATIVE), sides, strict=True):
            embeds[name] = torch.cat([embeds[name], (scale * tokens).to(embeds[name])], dim=1)
        return call_pipeline(pipe, {**without_prompts(call), **embeds})

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
