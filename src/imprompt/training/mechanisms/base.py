"""What every way of bringing an image prompt into a base offers."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from imprompt.errors import AdapterMismatch, CheckpointError
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.inputs.encoder import Input

Inputs = Mapping[Input, Tensor]

Denoise = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(x_t "batch channels height width", times " batch", text embeddings, added conditions) → prediction."""


class Mechanism:
    """A way for an image prompt into a base, in its place on a pipeline's U-Net.

    Attributes:
        name: as configurations and files call it
        trains_base: whether the U-Net's own weights are trained too
        works_with_text: whether a text can act beside the image prompt
        trained: everything that learns
        unet: the base's, on which it sits
    """

    name: ClassVar[str]
    trains_base: ClassVar[bool] = False
    works_with_text: ClassVar[bool] = True

    trained: nn.Module
    unet: Any

    def prompted(self, inputs: Inputs) -> contextlib.AbstractContextManager[Denoise]:
        """Give the U-Net under these image prompts, "batch 1 ..." each; call `backward` inside."""
        raise NotImplementedError

    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw one picture for each image prompt.

        Args:
            pipe: a pipeline with this very U-Net: text-to-image, ControlNet, ...
            images: as many as there are prompts in `call`
            scale: how strongly they act; each mechanism says what that is to it
            call: what the pipeline is called with: "prompt", a list, and anything else that it takes

        Raises:
            AdapterMismatch: the pipeline has another U-Net
        """
        raise NotImplementedError

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the trained weights as a safetensors file that says in its metadata what it is."""
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        """Read what `save` wrote into the trained weights.

        Raises:
            CheckpointError: no such file, or one of other weights
        """
        raise NotImplementedError

    def detach(self) -> None:
        """Take it away: the U-Net is as it was before, bit for bit; nothing happens the second time."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """How many parameters learn."""
        return sum(parameter.numel() for parameter in self.trained.parameters())

    def metadata(self, more: Mapping[str, str]) -> dict[str, str]:
        """What its file says."""
        return {"injection": self.name, "parameters": str(self.parameters), **more}

    def check_pipeline(self, pipe: Any) -> None:
        """Refuse a pipeline whose pictures it could not reach.

        Raises:
            AdapterMismatch: it has another U-Net
        """
        if getattr(pipe, "unet", None) is not self.unet:
            raise AdapterMismatch(
                f"this {type(pipe).__name__} has another U-Net than the one that the {self.name} adapter is "
                "on: make the pipeline of that one's parts"
            )


def denoised(unet: Any, noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
    """The U-Net's prediction."""
    return unet(noisy, times, text, added_cond_kwargs=added).sample


def put_in_place(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy a file's tensors into a module's own, all of them or none.

    Raises:
        CheckpointError: one is missing, too many, or of another shape
    """
    here = module.state_dict()
    for name in sorted({*here, *tensors}):
        if name not in tensors:
            raise CheckpointError(f"{path} has no {name}: it is damaged, or of another base")
        if name not in here:
            raise CheckpointError(f"{path} holds {name}, which has no place here: it is of another base")
        if tensors[name].shape != here[name].shape:
            there, wanted = tuple(tensors[name].shape), tuple(here[name].shape)
            raise CheckpointError(f"{path}: {name} has shape {there}, and {wanted} on this base")
    module.load_state_dict(tensors)
