"""The simple adapter: image tokens are appended to the text's and share its keys and values."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import Denoise, Inputs
from imprompt.training.mechanisms.projection import ProjectedMechanism
from imprompt.training.mechanisms.text import NEGATIVE, POSITIVE, drop_prompts, text_embeddings


class ConcatenatedMechanism(ProjectedMechanism):
    """output = Attn(Q, [K, K_i], [V, V_i]); the projection alone is trained.

    Args:
        projection: image embedding, or whatever it `takes`, → image tokens
        pipe: the base's pipeline, which stays unchanged
    """

    name = "concatenated"

    def __init__(self, projection: nn.Module, pipe: Any) -> None:
        self.trained = self.projection = projection
        self.unet = pipe.unet

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Append the image tokens to the text that the U-Net reads."""
        tokens = self.project(inputs)

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return predict(self.unet, noisy, times, torch.cat([text, tokens.to(text)], dim=1), added)

        yield denoise

    @torch.no_grad()
    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate with the image tokens multiplied by `scale`; 0 does not give the base."""
        sides = self.project_both_branches(pipe, images, call)
        embeds = text_embeddings(pipe, call)
        for name, tokens in zip((POSITIVE, NEGATIVE), sides, strict=True):
            embeds[name] = torch.cat([embeds[name], (scale * tokens).to(embeds[name])], dim=1)
        return call_pipeline(pipe, {**drop_prompts(call), **embeds})

    def detach(self) -> None:
        """Do nothing, as the pipeline was not changed."""
