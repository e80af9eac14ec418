"""The autoencoder: a linear code in closed form (no descent), then detail learned on noised latents.

loss = |x - D(E(x) + s n ε)|        s: a channel's deviation, n uniform between 0 and the recipe's noise
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn

from imprompt.lab.making.batches import DrawingBatch, iterate_batches, to_pixels
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.objectives.stage import StageObjective
from imprompt.lab.making.recipe import CodecRecipe, DecoderRecipe
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.sheets import picture_grid

LOOK = 256
"""The number of held-out pictures on which the autoencoder is tested."""

SHOWN = 12


def fit_codec(recipe: CodecRecipe, output: Path) -> Path:
    """Fit the linear code on `steps` batches, into `<output>/vae`; its figures into `<output>/runs/codec`."""
    drawings = Drawings(resolve_in_cache(recipe.data), "training")
    steps = iterate_batches(len(drawings), recipe.batch_size, recipe.seed, range(recipe.steps))
    pixels = torch.cat([to_pixels(drawings.pictures[batch.rows]) for [batch] in steps])
    codec = PatchAutoencoder.fit(pixels, latent_channels=recipe.latent_channels, patch_size=recipe.patch_size)
    before = load_held_out_pixels(recipe.data)
    after = reconstruct(codec, before)
    run = output / "runs" / "codec"
    run.mkdir(parents=True, exist_ok=True)
    figures = {"held-out PSNR": float(psnr(before, after).mean()), "latent channels": recipe.latent_channels}
    (run / "log.jsonl").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    picture_grid([list(before[:SHOWN]), list(after[:SHOWN])]).save(run / "sample.png")
    codec.save_pretrained(output / "vae")
    return output


class DecoderObjective(StageObjective):
    """The detail that convolutions add to the linear decoding; the code itself stays as it is."""

    def __init__(self, recipe: DecoderRecipe, output: Path) -> None:
        super().__init__(recipe)
        self.held_out_pictures = load_held_out_pixels(recipe.data)
        self.codec = load_with_detail(output / "vae", recipe.widths)
        self.detail = cast(nn.Module, self.codec.detail).requires_grad_(True)
        self.deviations = self.encode(self.held_out_pictures).std(dim=(0, 2, 3), keepdim=True)

    def encode(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch channels _ _"]:
        """Encode pictures to latents."""
        return self.codec.encode(pixels.to(self.codec.device)).latent_dist.mode()

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the absolute error of pictures from noised latents."""
        pixels, generator = self.pixels(batch), batch.make_generator(self.device)
        latents = self.encode(pixels)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        share = torch.rand(len(latents), 1, 1, 1, generator=generator, device=latents.device)
        noised = latents + self.recipe.noise * share * self.deviations.to(latents.device) * noise
        return {"loss": (self.codec.decode(noised).sample.float() - pixels).abs().mean()}

    def measure_held_out(self) -> dict[str, float]:
        """Return the PSNR on unseen pictures, from clean latents and from the noisiest."""
        clean, noisy = self.reconstruct_held_out()
        before = self.held_out_pictures
        return {
            "PSNR": float(psnr(before, clean).mean()),
            "PSNR from noised": float(psnr(before, noisy).mean()),
        }

    def reconstruct_held_out(self) -> tuple[Tensor, Tensor]:
        """Return unseen pictures through clean latents, and through the noisiest."""
        latents = self.encode(self.held_out_pictures)
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(latents.device)
        noised = latents + self.recipe.noise * self.deviations.to(latents.device) * noise
        return decode(self.codec, latents), decode(self.codec, noised)

    def draw_samples(self) -> Image.Image:
        """Draw unseen pictures, decoded, and decoded from noised latents."""
        rows = [self.held_out_pictures, *self.reconstruct_held_out()]
        return picture_grid([list(pictures[:SHOWN]) for pictures in rows])

    def export(self, output: Path) -> None:
        """Write the autoencoder, and replace the one in the base if there is a base already."""
        self.codec.save_pretrained(output / "vae")
        if (output / "base").is_dir():
            self.codec.save_pretrained(output / "base" / "vae")


def load_with_detail(folder: Path, widths: Sequence[int]) -> Any:
    """Load the autoencoder in `folder`, frozen; detail to be trained is added if it has no such widths."""
    codec: Any = PatchAutoencoder.from_pretrained(folder)
    if list(codec.config["decoder_widths"]) != list(widths):
        codec = codec.with_detail(widths)
    return codec.requires_grad_(False).to(memory_format=torch.channels_last)


def load_held_out_pixels(data: str) -> Float[Tensor, "batch 3 size size"]:
    """Load fixed pictures of unseen combinations."""
    return to_pixels(Drawings(resolve_in_cache(data), "combinations").pictures[:LOOK])


@torch.no_grad()
def reconstruct(codec: Any, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
    """Encode and decode pictures."""
    return decode(codec, codec.encode(pixels).latent_dist.mode())


@torch.no_grad()
def decode(codec: Any, latents: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch 3 size size"]:
    """Decode latents to pictures, clamped to [-1, 1], on the CPU."""
    parts = [codec.decode(part).sample.float().clamp(-1, 1).cpu() for part in latents.split(64)]
    return torch.cat(parts)


def psnr(
    one: Float[Tensor, "batch 3 size size"], other: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, " batch"]:
    """Return the peak signal-to-noise ratio of pictures in [-1, 1], in dB."""
    return 10 * torch.log10(4 / (one - other).square().flatten(1).mean(dim=1).clamp(min=1e-10))
