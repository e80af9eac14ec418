"""The interface of every mechanism by which an image prompt reaches a base."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.attention.denoiser_call import name_denoiser
from imprompt.attention.diffusers_internals import get_pipeline_denoiser
from imprompt.errors import AdapterMismatch, AmbiguousBatch, CheckpointError
from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings

Inputs = Mapping[Input, Tensor]

Denoise = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(x_t "batch channels height width", times " batch", text embeddings, added conditions) → prediction."""


class Mechanism:
    """A mechanism that is attached to a pipeline's U-Net.

    Attributes:
        name: name in configurations and files
        takes: what it reads of a picture; of a decoupled adapter its projection says it
        trains_base: whether the U-Net's own weights are trained too
        works_with_text: whether a text prompt can act together with the image prompt
        trained: the module with all trained weights
        unet: the U-Net to which it is attached, or the transformer
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[Input, ...]] = ("image_embedding",)
    trains_base: ClassVar[bool] = False
    works_with_text: ClassVar[bool] = True

    trained: nn.Module
    unet: Any

    def condition_on(self, inputs: Inputs) -> contextlib.AbstractContextManager[Denoise]:
        """Yield the U-Net conditioned on image prompts, "batch 1 ..."; call `backward` inside."""
        raise NotImplementedError

    def more_loss(
        self,
        inputs: Inputs,
        text: Float[Tensor, "batch length width"],
        uniform: Float[Tensor, " batch"],
        noise: Float[Tensor, "batch ..."],
    ) -> Tensor | float:
        """Return a loss of its own, added to the base's; `uniform` and `noise` are its random numbers."""
        return 0.0

    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate one image for each image prompt.

        Args:
            pipe: a pipeline with the same U-Net: text-to-image, ControlNet, ...
            images: one for each prompt in `call`
            scale: strength of the image prompts; its meaning depends on the mechanism
            call: arguments of the pipeline: "prompt", a list, and any others

        Raises:
            AdapterMismatch: the pipeline has another U-Net
        """
        raise NotImplementedError

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the trained weights as a safetensors file whose metadata name the mechanism."""
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        """Read what `save` wrote into the trained weights.

        Raises:
            CheckpointError: no such file, or one of other weights
        """
        raise NotImplementedError

    def detach(self) -> None:
        """Restore the U-Net bit for bit; a second call does nothing."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.trained.parameters())

    def metadata(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the metadata of the file."""
        return {"injection": self.name, "parameters": str(self.parameters), **more}

    def check_pipeline(self, pipe: Any) -> None:
        """Refuse a pipeline that does not use this U-Net or transformer.

        Raises:
            AdapterMismatch: it has another one
        """
        if get_pipeline_denoiser(pipe) is not self.unet:
            raise AdapterMismatch(
                f"this {type(pipe).__name__} has another {name_denoiser(self.unet)} than the one that the "
                f"{self.name} adapter is on: make the pipeline of that one's parts"
            )


class BranchRows:
    """Rows for a batch of image prompts, and for both branches of guidance, the negative one first.

    Args:
        positive: one row for each image prompt
        negative: the rows of the negative branch; None where only a batch without guidance can come
    """

    def __init__(self, positive: Tensor, negative: Tensor | None = None) -> None:
        self.prompts, self._rows = len(positive), {len(positive): positive}
        if negative is not None:
            self._rows[2 * len(positive)] = torch.cat([negative, positive])

    def fit(self, samples: int) -> Tensor:
        """Return the rows for a batch of that many samples.

        Raises:
            AmbiguousBatch: there are none
        """
        if samples not in self._rows:
            raise AmbiguousBatch(
                f"the U-Net is given {samples} samples; {self.prompts} image prompts fit on "
                f"{' or '.join(map(str, self._rows))}"
            )
        return self._rows[samples]


def prefix_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of modules, each name with the prefix of its module."""
    return {
        f"{prefix}{name}": value
        for prefix, module in parts.items()
        for name, value in module.state_dict().items()
    }


def load_tensors(parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors of a file into modules, which are given by prefix, all tensors or none.

    Raises:
        CheckpointError: one is missing, too many, or of another shape
    """
    here = prefix_tensors(parts)
    for name in sorted({*here, *tensors}):
        if name not in tensors:
            raise CheckpointError(f"{path} has no {name}: it is damaged, or of another base")
        if name not in here:
            raise CheckpointError(f"{path} holds {name}, which has no place here: it is of another base")
        if tensors[name].shape != here[name].shape:
            there, wanted = tuple(tensors[name].shape), tuple(here[name].shape)
            raise CheckpointError(f"{path}: {name} has shape {there}, and {wanted} on this base")
    with torch.no_grad():
        for name, value in here.items():
            value.copy_(tensors[name])
