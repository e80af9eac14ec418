"""Mechanisms that train the base's U-Net together with weights of their own."""

from typing import Any, ClassVar

import torch
from torch import nn

from imprompt.errors import AdapterMismatch
from imprompt.training.mechanisms.projection import PREFIX, ProjectedMechanism

UNET_PREFIX = "unet."
"""Prefix of the U-Net's tensors in a file."""


class FineTunedMechanism(ProjectedMechanism):
    """A projection and the whole U-Net. A copy of the U-Net's weights is kept for `detach`.

    Its file holds both: the projection under `image_proj.`, the U-Net under `unet.`.

    Args:
        projection: the new projection
        pipe: the base's pipeline; its U-Net is made trainable, in place

    Raises:
        AdapterMismatch: its U-Net reads a pooled text (SDXL, Kolors), which these mechanisms do not support
    """

    trains_base: ClassVar[bool] = True

    def __init__(self, projection: nn.Module, pipe: Any) -> None:
        if pipe.unet.config.addition_embed_type == "text_time":
            raise AdapterMismatch(
                f"a {self.name} adapter cannot go on a base whose U-Net reads a pooled text, as SDXL's does"
            )
        self.projection, self.unet = projection, pipe.unet
        self._before: WeightsBackup | None = WeightsBackup(pipe.unet)
        self.unet.requires_grad_(True)
        self.trained = nn.ModuleDict({"projection": projection, "unet": self.unet})

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Projection and U-Net."""
        return {PREFIX: self.projection, UNET_PREFIX: self.unet}

    def detach(self) -> None:
        """Put the U-Net's own weights back."""
        if self._before is not None:
            self._before.restore()
            self._before = None


class WeightsBackup:
    """A copy of a module's weights on the CPU, and of which of them are trainable."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = {name: value.to("cpu", copy=True) for name, value in module.state_dict().items()}
        self.learns = {name: value.requires_grad for name, value in module.named_parameters()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copy back into the module."""
        for name, value in self.module.state_dict().items():
            value.copy_(self.values[name])
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.learns[name])
            parameter.grad = None
