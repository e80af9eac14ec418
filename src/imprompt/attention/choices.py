"""What settings of the attention choose from, and the known bases; this module does not import torch."""

from collections.abc import Mapping
from typing import Literal

from imprompt.inputs.choices import NoImage

Scaling = Literal["value", "key and value", "key and mean value"]
"""What λ multiplies, see `imprompt.Reference`."""

Axis = Literal["steps", "noise"]
"""What `start` and `end` of a reference are fractions of."""

Injection = Literal["unet", "flux-xlabs", "flux-instantx", "flux-redux", "sd35"]
"""How image prompts enter a denoiser: the paper's cross-attention of a U-Net, the two kinds for the blocks of
FLUX.1, FLUX.1 Redux's tokens behind the text, and the joint attention of Stable Diffusion 3.5."""

NO_IMAGE: dict[Injection, NoImage] = {
    "unet": "blank",
    "flux-xlabs": "black picture",
    "flux-instantx": "nothing",
    "flux-redux": "nothing",
    "sd35": "zeros",
}
"""What stands for "no image" in the code by which the published adapters were trained or are used: x-flux,
xflux_pipeline.py (a black picture); InstantX' FLUX.1 pipeline, which has no negative; InstantX'
pipeline_stable_diffusion_3_ipa.py (zero features)."""

HEAD_DIMS: dict[Injection, int] = {
    "unet": 64,
    "flux-xlabs": 128,
    "flux-instantx": 128,
    "flux-redux": 128,
    "sd35": 64,
}
"""Width of a head of the published base."""

Place = Literal["q", "k", "v", "out"]
"""The four matrices of an attention layer."""

LoraShapes = Mapping[Place, tuple[int, int, int]]
"""Matrix of an attention layer → (in, out, rank) of its LoRA."""

FAMILIES = {
    (16, 768): "SD1.5",
    (16, 1024): "SD2.x",
    (70, 2048): "SDXL",
    (7, 192): "mini",
    (19, 4096): "FLUX.1",
    (57, 4096): "FLUX.1",
    (38, 2432): "SD3.5 Large",
}
"""(number of an adapter's layers, width of its tokens) of the well-known bases."""

FAMILY_OF_WIDTH = {width: family for (_, width), family in FAMILIES.items()}
"""Width of the text embeddings → family, of the well-known bases."""
