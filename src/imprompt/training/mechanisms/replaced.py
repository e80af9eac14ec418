"""Image tokens in place of the text: SD image variations."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import Denoise, Inputs
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism
from imprompt.training.mechanisms.text import NEGATIVE, POSITIVE, drop_prompts


class ReplacedMechanism(FineTunedMechanism):
    """output = Attn(Q, K_i, V_i): no text at all; projection and the whole U-Net are trained.

    This follows lambdalabs/sd-image-variations-diffusers with two differences. Its U-Net reads the CLIP
    embedding as one token; here it reads N tokens of the paper's projection, as in the other mechanisms. And
    its training dropped no image at first.
    """

    name = "replaced"
    works_with_text = False

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Let the U-Net read the image tokens instead of the text."""
        tokens = self.project(inputs)

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return predict(self.unet, noisy, times, tokens.to(text), added)

        yield denoise

    @torch.no_grad()
    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate with image embeddings times `scale`, 0 being no image, without the prompts.

        A ControlNet reads what the U-Net reads: the image tokens, which it was not trained on.
        """
        sides = self.project_both_branches(pipe, images, call, scale)
        positive, negative = (side.to(self.unet.dtype) for side in sides)
        return call_pipeline(pipe, {**drop_prompts(call), POSITIVE: positive, NEGATIVE: negative})
