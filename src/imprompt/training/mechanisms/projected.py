"""Mechanisms that bring in what a projection makes of the image embedding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.errors import InvalidReference
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.mechanisms.base import Inputs, Mechanism

PREFIX = "image_proj."
"""Of a projection's tensors in a file, as in the official layout."""


class ProjectedMechanism(Mechanism):
    """A projection of image embeddings, trained from new.

    Attributes:
        projection: "batch embedding_dim" → what the U-Net is given
    """

    projection: nn.Module

    def projected(self, inputs: Inputs) -> Tensor:
        """Of one image prompt each, "batch 1 ..."."""
        return self.projection(inputs["image_embedding"][:, 0])

    def both_sides(
        self, pipe: Any, images: Sequence[ImageEmbeddings], call: Mapping[str, Any], scale: float | int = 1
    ) -> tuple[Tensor, Tensor]:
        """What the projection makes of image embeddings multiplied by `scale`, and of no image, for guidance.

        Raises:
            AdapterMismatch: the pipeline has another U-Net
            InvalidReference: a prompt has no image prompt of its own, or is to make several pictures
        """
        self.check_pipeline(pipe)
        _check_counts(images, call)
        positive = self._stacked([one.inputs for one in images])
        negative = self._stacked([one.blank for one in images])
        return self.projection(scale * positive), self.projection(negative)

    def _stacked(self, sides: Sequence[Inputs]) -> Tensor:
        """One image embedding of each side, the first of several, in the projection's format and place."""
        like = next(self.projection.parameters())
        each = [side["image_embedding"] for side in sides]
        return torch.stack([one.to(like).reshape(-1, one.shape[-1])[0] for one in each])


def _check_counts(images: Sequence[ImageEmbeddings], call: Mapping[str, Any]) -> None:
    if len(images) != len(call["prompt"]) or call.get("num_images_per_prompt", 1) != 1:
        raise InvalidReference(
            f"{len(images)} image prompts need as many prompts, one picture each; there are "
            f"{len(call['prompt'])} prompts, with {call.get('num_images_per_prompt', 1)} pictures each"
        )
