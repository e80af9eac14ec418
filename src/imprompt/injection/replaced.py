"""Image tokens in the text's place: SD image variations."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imprompt.embeddings import ImageEmbeddings
from imprompt.injection.base import Denoise, Inputs, denoised
from imprompt.injection.fine_tuned import FineTunedInjection
from imprompt.injection.text import NEGATIVE, POSITIVE, both_sides, check_counts, without_prompts


class ReplacedInjection(FineTunedInjection):
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
        tokens = self.projection(inputs["image_embedding"][:, 0])

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
        self.check_pipeline(pipe)
        check_counts(images, call)
        weight = next(self.projection.parameters())
        positive, negative = both_sides(images, weight)
        embeds = {POSITIVE: self.projection(scale * positive), NEGATIVE: self.projection(negative)}
        return pipe(**without_prompts(call), **{k: x.to(self.unet.dtype) for k, x in embeds.items()}).images
