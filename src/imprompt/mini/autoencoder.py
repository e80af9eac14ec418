"""The embedded model's autoencoder: a linear code of every 8 × 8 patch, by principal components.

    latents = W (patch − mean)        patch ≈ mean + W⁺ latents        picture = patches + refine(patches)

W holds the leading principal directions of the patches, each divided by the geometric mean of its own
standard deviation and the first one's; `fit` computes them in closed form. Three small convolutions may
follow, which reach across the borders of patches. Trained on noised latents, they repair what a denoiser
leaves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """A linear patch code with the interface of diffusers' `AutoencoderKL`, so that every pipeline takes it.

    Pictures are in [-1, 1] and have shape (batch, 3, height, width), both divisible by `patch_size`. Latents
    have shape (batch, latent_channels, height / patch_size, width / patch_size), times `splits` in height and
    width. The code is deterministic: its "distribution" is a point.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 8,
        latent_channels: int = 32,
        # diffusers' pipelines compute the latents' scale factor from this length: 2 ** (4 - 1) = 8.
        block_out_channels: Sequence[int] = (1, 1, 1, 1),
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
        refine_width: int = 0,
        decoder_widths: Sequence[int] = (),
        shift_factor: float = 0.0,
        splits: int = 1,
    ) -> None:
        super().__init__()
        channels = latent_channels * splits**2
        self.encoder = nn.Conv2d(3, channels, patch_size, stride=patch_size, bias=False)
        self.decoder = nn.ConvTranspose2d(channels, 3, patch_size, stride=patch_size, bias=False)
        self.mean = nn.Parameter(torch.zeros(3, patch_size, patch_size))
        self.refine = build_refinement(refine_width) if refine_width else None
        self.detail = DetailDecoder(channels, decoder_widths) if decoder_widths else None

    def mean_picture(self, rows: int, columns: int) -> Float[Tensor, "3 height width"]:
        """Return a picture of so many patches that are all the mean patch."""
        return self.mean.repeat(1, rows, columns)

    def encode(
        self, pixels: Float[Tensor, "batch 3 height width"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode pictures to latents, as a distribution of zero variance."""
        size = self.config["patch_size"]
        mean = self.encoder(pixels - self.mean_picture(pixels.shape[-2] // size, pixels.shape[-1] // size))
        mean = nn.functional.pixel_shuffle(mean, self.config["splits"])
        point = DiagonalGaussianDistribution(
            torch.cat([mean, torch.zeros_like(mean)], dim=1), deterministic=True
        )
        return AutoencoderKLOutput(latent_dist=point) if return_dict else (point,)

    def decode(
        self,
        latents: Float[Tensor, "batch latent_channels latent_height latent_width"],
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents to pictures; `generator`, which pipelines pass, is ignored."""
        latents = nn.functional.pixel_unshuffle(latents, self.config["splits"])
        pixels = self.decoder(latents) + self.mean_picture(*latents.shape[-2:])
        pixels = pixels if self.refine is None else pixels + self.refine(pixels)
        pixels = pixels if self.detail is None else pixels + self.detail(latents)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def with_detail(self, widths: Sequence[int]) -> "PatchAutoencoder":
        """Return a copy with a detail decoder of these widths, whose output is zero at first."""
        config: dict[str, Any] = {name: value for name, value in self.config.items() if name[0] != "_"}
        config["decoder_widths"] = list(widths)
        detailed = type(self)(**config)
        code = {name: value for name, value in self.state_dict().items() if "detail" not in name}
        detailed.load_state_dict(code, strict=False)
        return detailed

    def split(self, splits: int) -> "PatchAutoencoder":
        """Return a copy whose latents are `splits` times as high and as wide, with fewer channels."""
        config: dict[str, Any] = {name: value for name, value in self.config.items() if name[0] != "_"}
        config["latent_channels"] //= splits**2
        config["block_out_channels"] = (1,) * (config["patch_size"] // splits).bit_length()
        config["splits"] = splits
        copied = type(self)(**config)
        copied.load_state_dict(self.state_dict())
        return copied

    @classmethod
    @torch.no_grad()
    def fit(
        cls, pixels: Float[Tensor, "batch 3 height width"], *, latent_channels: int = 32, patch_size: int = 8
    ) -> "PatchAutoencoder":
        """Fit the least-squares linear code of these pictures' patches."""
        shrinkage = (1,) * patch_size.bit_length()
        code = cls(patch_size, latent_channels, block_out_channels=shrinkage)
        size = code.config["patch_size"]
        patches = nn.functional.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1).double()
        mean = patches.mean(dim=0)
        variances, directions = torch.linalg.eigh((patches - mean).T.cov())
        deviations = variances.flip(0)[:latent_channels].sqrt()
        directions = directions.flip(1)[:, :latent_channels].T  # (latent_channels, patch)
        spread = (deviations * deviations[0]).sqrt()[:, None]
        encode, decode = directions / spread, directions * spread
        shape = code.encoder.weight.shape
        code.encoder.weight.copy_(encode.reshape(shape))
        code.decoder.weight.copy_(decode.reshape(shape))
        code.mean.copy_(mean.reshape(code.mean.shape))
        return code


class DetailDecoder(nn.Module):
    """Residual convolutions that compute from the latents the detail that the linear code loses.

    Latents (batch, channels, height, width) → pixels (batch, 3, 2ⁿ height, 2ⁿ width) for n `widths`. The
    output is zero at first.
    """

    def __init__(self, latent_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualPair(width), ResidualPair(width), nn.Conv2d(width, 4 * after, 3, padding=1))
            for width, after in zip(widths, (*widths[1:], 3), strict=True)
        )
        nn.init.zeros_(self.stages[-1][-1].weight)  # type: ignore[index]
        nn.init.zeros_(self.stages[-1][-1].bias)  # type: ignore[index]

    def forward(self, latents: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 _ _"]:
        """Return the detail to add to the linear decoding."""
        hidden = self.stem(latents.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            hidden = nn.functional.pixel_shuffle(stage(hidden), 2)
        return hidden


class ResidualPair(nn.Module):
    """x + W₂ silu(W₁ silu(x)), two 3 × 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, hidden: Float[Tensor, "batch width _ _"]) -> Float[Tensor, "batch width _ _"]:
        """Return x + W₂ silu(W₁ silu(x))."""
        silu = nn.functional.silu
        return hidden + self.second(silu(self.first(silu(hidden))))


def build_refinement(width: int) -> nn.Sequential:
    """Build three convolutions at half resolution, whose output is zero at first."""
    last = nn.Conv2d(width, 12, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    first, middle = nn.Conv2d(12, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(2), first, nn.SiLU(), middle, nn.SiLU(), last, nn.PixelShuffle(2))
