"""The image embedding added to the time embedding: SD-unCLIP."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import BranchRows, Denoise, Inputs
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism


class TimeProjection(nn.Module):
    """s = W e, with W = 0 at first and no bias, so that "no image", e = 0, adds nothing.

    Args:
        embedding_dim: width of the image embedding e
        time_dim: width of the U-Net's time embedding
    """

    def __init__(self, embedding_dim: int, time_dim: int) -> None:
        super().__init__()
        self.takes: Mapping[Input, int] = {"image_embedding": embedding_dim}
        self.proj = nn.Linear(embedding_dim, time_dim, bias=False)
        nn.init.zeros_(self.proj.weight)

    def forward(
        self, image_embedding: Float[Tensor, "batch embedding_dim"]
    ) -> Float[Tensor, "batch time_dim"]:
        """Return what is added to the time embedding."""
        return self.proj(image_embedding)


class UnclipMechanism(FineTunedMechanism):
    """time embedding + W e; the text stays; W and the whole U-Net are trained. At first it is the base.

    This follows stabilityai/stable-diffusion-2-1-unclip with two differences. There noise is added to e, and
    the U-Net reads its level (Ramesh et al. 2022); here there is none, as in the other mechanisms. And there
    a small network takes the place of W.
    """

    name = "unclip"

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Add the image to the time embedding, which every residual block reads."""
        with add_to_time(self.unet, self.project(inputs)):
            yield lambda noisy, times, text, added: predict(self.unet, noisy, times, text, added)

    @torch.no_grad()
    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate with image embeddings times `scale`, 0 being no image; a ControlNet gets none."""
        with add_to_time(self.unet, *self.project_both_branches(pipe, images, call, scale)):
            return call_pipeline(pipe, call)


@contextlib.contextmanager
def add_to_time(
    unet: Any,
    positive: Float[Tensor, "batch time_dim"],
    negative: Float[Tensor, "batch time_dim"] | None = None,
) -> Iterator[None]:
    """Add tensors to a U-Net's time embedding: one per sample, or guidance's negative half first.

    Raises:
        AmbiguousBatch: the U-Net is called with another number of samples
    """
    rows = BranchRows(positive, negative)

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + rows.fit(len(output)).to(output)

    hook = unet.time_embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def time_embedding_width(unet: Any) -> int:
    """Return the width of a U-Net's time embedding."""
    return int(unet.time_embedding.linear_2.out_features)
