"""diffusers' inpainting on the embedded base, whose latents have more than four channels.

The U-Net of an inpainting model has mask channels. With any other U-Net the pipeline restores the known part
after every step. diffusers distinguishes the two by their input channels, 9 or 4, and refuses other numbers.
"""

from typing import Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)

from imprompt.attention.diffusers_internals import report_four_input_channels


class InpaintPipeline(StableDiffusionInpaintPipeline):
    """Inpainting by diffusers for a U-Net without mask channels and with any number of latent channels.

    `mini.as_pipeline(mini.InpaintPipeline, mini.pipeline())` builds it. It is called like diffusers' own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run diffusers' inpainting; see there for the arguments."""
        with report_four_input_channels(self):
            return super().__call__(*args, **kwargs)
