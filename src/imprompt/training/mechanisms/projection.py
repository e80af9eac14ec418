"""Mechanisms that read a projection of the image embedding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.errors import InvalidReference
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.mechanisms.base import Inputs, Mechanism, load_tensors, prefix_tensors

PREFIX = "image_proj."
"""Prefix of a projection's tensors in a file, as in the official layout."""


class ProjectedMechanism(Mechanism):
    """A new projection of image embeddings.

    Attributes:
        projection: "batch embedding_dim" → input of the U-Net
    """

    projection: nn.Module

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules of the file, by the prefix of their tensors."""
        return {PREFIX: self.projection}

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the trained parts; names of the projection are those of the official layout."""
        write_tensors(prefix_tensors(self.parts), path, self.metadata(metadata))

    def restore(self, path: Path) -> None:
        """Read the trained parts."""
        load_tensors(self.parts, read_tensors(path).tensors, path)

    def project(self, inputs: Inputs) -> Tensor:
        """Project one image prompt per sample, "batch 1 ..."."""
        return self.projection(inputs[self.takes[0]][:, 0])

    def project_both_branches(
        self, pipe: Any, images: Sequence[ImageEmbeddings], call: Mapping[str, Any], scale: float | int = 1
    ) -> tuple[Tensor, Tensor]:
        """Project image embeddings times `scale`, and blank ones for guidance.

        Raises:
            AdapterMismatch: the pipeline has another U-Net
            InvalidReference: a prompt has no image prompt of its own, or asks for several images
        """
        positive, negative = self.stack_branches(pipe, images, call)
        return self.projection(scale * positive), self.projection(negative)

    def stack_branches(
        self, pipe: Any, images: Sequence[ImageEmbeddings], call: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Stack one image prompt per prompt, and blank ones for guidance.

        Raises:
            AdapterMismatch, InvalidReference: as `project_both_branches`
        """
        self.check_pipeline(pipe)
        _check_counts(images, call)
        return self._stack([one.inputs for one in images]), self._stack([one.blank for one in images])

    def _stack(self, sides: Sequence[Inputs]) -> Tensor:
        """Stack one image embedding per prompt, the first of several, in the projection's format."""
        axes = 2 if self.takes[0] == "image_features" else 1
        like = next(self.projection.parameters())
        each = [side[self.takes[0]].to(like) for side in sides]
        return torch.stack([one.reshape(-1, *one.shape[-axes:])[0] for one in each])


def _check_counts(images: Sequence[ImageEmbeddings], call: Mapping[str, Any]) -> None:
    if len(images) != len(call["prompt"]) or call.get("num_images_per_prompt", 1) != 1:
        raise InvalidReference(
            f"{len(images)} image prompts need as many prompts, one picture each; there are "
            f"{len(call['prompt'])} prompts, with {call.get('num_images_per_prompt', 1)} pictures each"
        )
