"""Image tokens in the text's place: SD image variations."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imprompt.generation.pipeline_results import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.mechanisms.base import Denoise, Inputs, denoised
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism
from imprompt.training.mechanisms.text import NEGATIVE, POSITIVE, without_prompts


class ReplacedMechanism(FineTunedMechanism):
    """output = Attn(Q, K_i, V_i): no text at all; projection and the whole U-Net are trained.

    As lambdalabs/sd-image-variations-diffusers does it, with two differences: its U-Net reads the CLIP
    embedding itself as one token, ours N tokens of the paper's projection, as our other mechanisms; and its
    training dropped no image at first.
    """

    name = "replaced"
    works_with_text = False

    @contextlib.contextmanager
    def prompted(self, inputs: Inputs) -> Iterator[Denoise]:
        """The U-Net reads the image tokens, whatever the text."""
        tokens = self.projected(inputs)

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return denoised(self.unet, noisy, times, tokens.to(text), added)

        yield denoise

    @torch.no_grad()
    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with image embeddings multiplied by `scale`, 0 being no image; the prompts are not read.

        A ControlNet reads what the U-Net reads: the image tokens, which it was not trained on.
        """
        sides = self.both_sides(pipe, images, call, scale)
        positive, negative = (side.to(self.unet.dtype) for side in sides)
        return call_pipeline(pipe, {**without_prompts(call), POSITIVE: positive, NEGATIVE: negative})
