"""diffusers' inpainting on the embedded base, whose latents have 32 channels.

A U-Net for inpainting proper has mask channels; any other has what a latent has, and the pipeline puts the
known part back after every step. diffusers tells the two by their input channels, 9 or 4, and knows no third.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)


class InpaintPipeline(StableDiffusionInpaintPipeline):
    """diffusers' inpainting pipeline for a U-Net without mask channels, however many its latents have.

    Made by `mini.as_pipeline(mini.InpaintPipeline, mini.pipeline())`; called like diffusers' own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As diffusers', which has the arguments."""
        with called_four_channels(self.unet):
            return super().__call__(*args, **kwargs)


@contextmanager
def called_four_channels(unet: Any) -> Iterator[None]:
    """Let a U-Net's configuration say 4 input channels, which to diffusers means: no mask among them."""
    true = unet._internal_dict
    unet._internal_dict = FrozenDict({**true, "in_channels": 4})
    try:
        yield
    finally:
        unet._internal_dict = true
