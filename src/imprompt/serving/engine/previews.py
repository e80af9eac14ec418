"""What a picture will look like, from one call of the U-Net.

The input of a U-Net is x = √ᾱ x₀ + √(1 - ᾱ) ε whatever the scheduler, because the schedulers that count in σ
scale their latents to it, ᾱ = 1 / (1 + σ²), before each call. So x₀ follows from the input, the output and
the time step:

    ε-prediction    x₀ = (x - √(1 - ᾱ) ε) / √ᾱ          (Ho et al. 2020, equation 15)
    v-prediction    x₀ = √ᾱ x - √(1 - ᾱ) v              (Salimans & Ho 2022, appendix D)
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_SIDE = 16
"""The most latent pixels of a side of a preview; larger latents are averaged down, which decodes quickly."""


class Preview(NamedTuple):
    """One call of the U-Net for one picture."""

    sample: Float[Tensor, "rows channels height width"]
    timestep: Float[Tensor, " rows"]
    output: Float[Tensor, "rows channels height width"]
    guidance_scale: float | int


@torch.no_grad()
def draw_preview(pipe: Any, preview: Preview) -> Image.Image:
    """Decode the picture that the U-Net predicts; a large one is drawn smaller."""
    latents = predict_latents(pipe.scheduler, preview)
    shrink = max(1, -(-max(latents.shape[-2:]) // _SIDE))
    latents = F.avg_pool2d(latents, shrink, ceil_mode=True)
    vae = pipe.vae
    decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded.float().nan_to_num(), output_type="pil")[0]


def predict_latents(scheduler: Any, preview: Preview) -> Float[Tensor, "1 channels height width"]:
    """Return x₀ of the picture; with two rows they are guidance's negative and positive branch."""
    latents = preview.output.shape[1]
    sample, output = preview.sample[-1:, :latents].float(), preview.output.float()
    if len(output) == 2:
        negative, positive = output[:1], output[1:]
        output = negative + preview.guidance_scale * (positive - negative)
    signal = _interpolate(scheduler.alphas_cumprod, float(preview.timestep[-1]))
    root, noise = signal**0.5, (1 - signal) ** 0.5
    if scheduler.config.prediction_type == "v_prediction":
        return root * sample - noise * output[-1:]
    return (sample - noise * output[-1:]) / max(root, 1e-3)


def _interpolate(table: Tensor, position: float) -> float:
    """Return ᾱ at a time step, which some samplers place between two of training."""
    low = min(max(int(position), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    return float(table[low] + (position - low) * (table[high] - table[low]))
