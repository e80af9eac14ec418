"""diffusers' inpainting on the embedded base, whose latents have 32 channels.

A U-Net for inpainting proper has mask channels; any other has what a latent has, and the pipeline puts the
known part back after every step. diffusers tells the two by their input channels, 9 or 4, and knows no third.
"""

from typing import Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)

from imprompt.attention.diffusers_internals import report_four_input_channels


class InpaintPipeline(StableDiffusionInpaintPipeline):
    """diffusers' inpainting pipeline for a U-Net without mask channels, however many its latents have.

    Made by `mini.as_pipeline(mini.InpaintPipeline, mini.pipeline())`; called like diffusers' own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As diffusers', which has the arguments."""
        with report_four_input_channels(self):
            return super().__call__(*args, **kwargs)
