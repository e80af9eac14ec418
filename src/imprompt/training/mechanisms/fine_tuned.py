"""Mechanisms that train the base's U-Net beside a part of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.errors import AdapterMismatch
from imprompt.training.mechanisms.base import put_in_place
from imprompt.training.mechanisms.projected import PREFIX, ProjectedMechanism

UNET_PREFIX = "unet."
"""Of the U-Net's tensors in a file."""


class FineTunedMechanism(ProjectedMechanism):
    """A projection, and the whole U-Net with it. A copy of the U-Net's weights is kept for `detach`.

    Its file holds both: the projection under `image_proj.`, the U-Net under `unet.`.

    Args:
        projection: what is trained from new
        pipe: the base's pipeline; its U-Net is made trainable, in place

    Raises:
        AdapterMismatch: its U-Net reads a pooled text (SDXL, Kolors): none of these was made for such
    """

    trains_base: ClassVar[bool] = True

    def __init__(self, projection: nn.Module, pipe: Any) -> None:
        if pipe.unet.config.addition_embed_type == "text_time":
            raise AdapterMismatch(
                f"a {self.name} adapter cannot go on a base whose U-Net reads a pooled text, as SDXL's does"
            )
        self.projection, self.unet = projection, pipe.unet
        self._before: Kept | None = Kept(pipe.unet)
        self.unet.requires_grad_(True)
        self.trained = nn.ModuleDict({"projection": projection, "unet": self.unet})

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write projection and U-Net."""
        parts = {PREFIX: self.projection, UNET_PREFIX: self.unet}
        tensors = {
            f"{prefix}{name}": value
            for prefix, module in parts.items()
            for name, value in module.state_dict().items()
        }
        write_tensors(tensors, path, self.metadata(metadata))

    def restore(self, path: Path) -> None:
        """Read projection and U-Net."""
        renamed = {PREFIX: "projection.", UNET_PREFIX: "unet."}
        tensors = {}
        for name, value in read_tensors(path).tensors.items():
            prefix = next((prefix for prefix in renamed if name.startswith(prefix)), "")
            tensors[renamed.get(prefix, "") + name.removeprefix(prefix)] = value
        put_in_place(self.trained, tensors, path)

    def detach(self) -> None:
        """Put the U-Net's own weights back."""
        if self._before is not None:
            self._before.put_back()
            self._before = None


class Kept:
    """A module's weights as they are now, on the CPU, and which of them learn."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = {name: value.to("cpu", copy=True) for name, value in module.state_dict().items()}
        self.learns = {name: value.requires_grad for name, value in module.named_parameters()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the module as it was."""
        for name, value in self.module.state_dict().items():
            value.copy_(self.values[name])
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.learns[name])
            parameter.grad = None
