"""A ControlNet that is shown the image prompt shuffled, so that it can copy colors and not the layout."""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import (
    BranchRows,
    Denoise,
    Inputs,
    Mechanism,
    load_tensors,
    prefix_tensors,
)

SILU_GAIN = 1.68
"""1 / √E[silu(x)²] for normal x: what preserves the variance through SiLU."""

POSITIONAL = "sample", "timestep", "encoder_hidden_states"
"""Names of the U-Net's positional arguments."""

WARP_CELLS = 2
"""The number of cells of the random warp along a side: ControlNet 1.1 has cells of 256 of 512 pixels."""


class ShuffledControlMechanism(Mechanism):
    """U-Net(x_t) + mean over positions of C(x_t, shuffled picture), at each of its skip connections.

    This is ControlNet 1.1's "shuffle" (lllyasviel/ControlNet-v1-1-nightly, `global_average_pooling`): C is a
    copy of the U-Net's encoder whose outputs are averaged over all positions and added by weights that are
    zero at the beginning. The base stays unchanged. A blank image adds nothing, so neither does the negative
    branch of guidance.

    Args:
        controlnet: C, see `build_controlnet`
        pipe: the base's pipeline
    """

    name = "shuffled-control"
    takes: ClassVar[tuple[Input, ...]] = ("image_pixels",)

    def __init__(self, controlnet: Any, pipe: Any) -> None:
        self.trained = self.controlnet = controlnet
        self.unet, self.shrink = pipe.unet, int(pipe.vae_scale_factor)

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Add the ControlNet's outputs for these pictures."""
        with self._control(inputs["image_pixels"][:, 0]):
            yield lambda noisy, times, text, added: predict(self.unet, noisy, times, text, added)

    @torch.no_grad()
    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate with the ControlNet's outputs times `scale`; 0 is the base."""
        self.check_pipeline(pipe)
        rows = torch.stack([one.inputs["image_pixels"][0] for one in images])
        with self._control(rows.to(self.controlnet.device), scale):
            return call_pipeline(pipe, call)

    @contextlib.contextmanager
    def _control(
        self, pixels: Float[Tensor, "batch 3 size size"], scale: float | int = 1.0
    ) -> Iterator[None]:
        """Add residuals in every call of the U-Net, to those of another ControlNet if there are some."""
        shuffled = shuffle_pixels(pixels)
        rows = BranchRows(shuffled, torch.zeros_like(shuffled))

        def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            named = {
                **dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)),
                **kwargs,
            }
            down, middle = self._residuals(rows.fit(len(named["sample"])), named, scale)
            others = kwargs.get("down_block_additional_residuals") or [0] * len(down)
            summed = {
                "down_block_additional_residuals": [a + b for a, b in zip(down, others, strict=True)],
                "mid_block_additional_residual": middle + kwargs.get("mid_block_additional_residual", 0),
            }
            return args, kwargs | summed

        hook = self.unet.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _residuals(
        self, pixels: Float[Tensor, "rows 3 size size"], call: Mapping[str, Any], scale: float | int
    ) -> tuple[list[Tensor], Tensor]:
        """Return C's outputs, zero for a blank picture."""
        shown = scale * (pixels != 0).flatten(1).any(dim=1).to(call["sample"]).view(-1, 1, 1, 1)
        size = tuple(self.shrink * side for side in call["sample"].shape[-2:])
        down, middle = self.controlnet(
            call["sample"],
            call["timestep"],
            call["encoder_hidden_states"],
            controlnet_cond=F.interpolate(pixels.to(call["sample"]), size=size, mode="bilinear"),
            added_cond_kwargs=call.get("added_cond_kwargs"),
            return_dict=False,
        )
        return [shown * one for one in down], shown * middle

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the ControlNet's tensors."""
        write_tensors(prefix_tensors({"": self.controlnet}), path, self.metadata(metadata))

    def restore(self, path: Path) -> None:
        """Read the ControlNet's tensors."""
        load_tensors({"": self.controlnet}, read_tensors(path).tensors, path)

    def detach(self) -> None:
        """Do nothing, as the pipeline was not changed."""


def build_controlnet(pipe: Any, seed: int = 0) -> Any:
    """Build C: a copy of the U-Net's encoder, with zero outputs and a small network for the picture."""
    levels = round(math.log2(pipe.vae_scale_factor))
    widths = tuple(min(16 * 2**level, 256) for level in range(levels + 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet: Any = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=widths)
        preserve_variance(controlnet.controlnet_cond_embedding)
    controlnet.register_to_config(global_pool_conditions=True)
    return controlnet.requires_grad_(True).to(pipe.unet.device)


def shuffle_pixels(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
    """Warp each picture by a smooth random map of places, which follows from its pixels.

    As in ControlNet 1.1's `ContentShuffleDetector`: each place shows another one, given by two random images
    that are interpolated from a coarse grid and stretched to the whole range. Blank pictures stay blank.
    """
    cells, size = WARP_CELLS + 2, pixels.shape[-1]
    coarse = torch.stack([_draw_grid(one, cells) for one in pixels]).to(pixels.device)
    smooth = F.interpolate(coarse, size=2 * size, mode="bicubic", align_corners=False)
    smooth = smooth[..., size // 2 : size // 2 + size, size // 2 : size // 2 + size]
    low, high = smooth.amin((2, 3), keepdim=True), smooth.amax((2, 3), keepdim=True)
    places = 2 * (smooth - low) / (high - low) - 1
    return F.grid_sample(pixels.float(), places.permute(0, 2, 3, 1), align_corners=True).to(pixels)


def _draw_grid(pixels: Float[Tensor, "3 size size"], cells: int) -> Float[Tensor, "2 cells cells"]:
    digest = hashlib.sha256(pixels.detach().float().cpu().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6]))
    return torch.rand(2, cells, cells, generator=generator)


def preserve_variance(embedding: nn.Module) -> None:
    """Initialize a picture's layers so that each output varies about as much as its input (He et al. 2015).

    torch's own initial weights shrink a picture by 10,000 over the nine layers that 128 px need, and the
    ControlNet never learns to read it. The last layer stays zero, as in the paper.

    Args:
        embedding: a `ControlNetConditioningEmbedding`, whose layers are convolutions with SiLU between them
    """
    *layers, last = (module for module in embedding.modules() if isinstance(module, nn.Conv2d))
    assert not last.weight.any()
    for layer in layers:
        nn.init.normal_(layer.weight, std=SILU_GAIN / layer.weight[0].numel() ** 0.5)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
