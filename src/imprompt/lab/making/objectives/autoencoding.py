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

from imprompt.lab.making.batches import DrawingBatch, batches, to_pixels
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.recipe import CodecRecipe, DecoderRecipe
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.runtime.settings import resolve_in_cache
from imprompt.training.objectives.objective import Objective
from imprompt.training.sheets import picture_grid

LOOK = 256
"""How many held-out pictures the autoencoder is judged on."""

SHOWN = 12


def fit_codec(recipe: CodecRecipe, output: Path) -> Path:
    """Fit the linear code on `steps` batches, into `<output>/vae`; its figures into `<output>/runs/codec`."""
    drawings = Drawings(resolve_in_cache(recipe.data), "training")
    steps = batches(len(drawings), recipe.batch_size, recipe.seed, range(recipe.steps))
    pixels = torch.cat([to_pixels(drawings.pictures[batch.rows]) for [batch] in steps])
    codec = PatchAutoencoder.fit(pixels, latent_channels=recipe.latent_channels, patch_size=recipe.patch_size)
    before = held_out_pixels(recipe.data)
    after = reconstruct(codec, before)
    run = output / "runs" / "codec"
    run.mkdir(parents=True, exist_ok=True)
    figures = {"held-out PSNR": float(psnr(before, after).mean()), "latent channels": recipe.latent_channels}
    (run / "log.jsonl").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    picture_grid([list(before[:SHOWN]), list(after[:SHOWN])]).save(run / "sample.png")
    codec.save_pretrained(output / "vae")
    return output


class DecoderObjective(Objective):
    """The detail that convolutions add to the linear decoding; the code itself stays as it is."""

    autocasts = True

    def __init__(self, recipe: DecoderRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.drawings = Drawings(resolve_in_cache(recipe.data), "training")
        self.held_out_pictures = held_out_pixels(recipe.data)
        self.codec = load_with_detail(output / "vae", recipe.widths)
        self.detail = cast(nn.Module, self.codec.detail).requires_grad_(True)
        self.deviations = self.encode(self.held_out_pictures).std(dim=(0, 2, 3), keepdim=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The detail decoder."""
        return [{"params": list(self.detail.parameters()), "lr": self.recipe.learning_rate}]

    def encode(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch channels _ _"]:
        """Pictures → latents."""
        return self.codec.encode(pixels.to(self.codec.device)).latent_dist.mode()

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """The absolute error of pictures from noised latents."""
        pixels = to_pixels(self.drawings.pictures[batch.rows]).to(self.codec.device)
        generator = batch.generator(self.codec.device)
        latents = self.encode(pixels)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        share = torch.rand(len(latents), 1, 1, 1, generator=generator, device=latents.device)
        noised = latents + self.recipe.noise * share * self.deviations.to(latents.device) * noise
        return {"loss": (self.codec.decode(noised).sample.float() - pixels).abs().mean()}

    def held_out(self) -> dict[str, float]:
        """PSNR on unseen pictures, from clean latents and from the noisiest."""
        clean, noisy = self.reconstructions()
        before = self.held_out_pictures
        return {
            "PSNR": float(psnr(before, clean).mean()),
            "PSNR from noised": float(psnr(before, noisy).mean()),
        }

    def reconstructions(self) -> tuple[Tensor, Tensor]:
        """Unseen pictures through clean latents, and through the noisiest."""
        latents = self.encode(self.held_out_pictures)
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(latents.device)
        noised = latents + self.recipe.noise * self.deviations.to(latents.device) * noise
        return decode(self.codec, latents), decode(self.codec, noised)

    def draw_samples(self) -> Image.Image:
        """Unseen pictures, decoded, and decoded from noised latents."""
        rows = [self.held_out_pictures, *self.reconstructions()]
        return picture_grid([list(pictures[:SHOWN]) for pictures in rows])

    def export(self, output: Path) -> None:
        """The autoencoder, in its own place and in the base's if there is one already."""
        self.codec.save_pretrained(output / "vae")
        if (output / "base").is_dir():
            self.codec.save_pretrained(output / "base" / "vae")


def load_with_detail(folder: Path, widths: Sequence[int]) -> Any:
    """The autoencoder in `folder`, frozen; without detail of these widths it gets one to be trained."""
    codec: Any = PatchAutoencoder.from_pretrained(folder)
    if list(codec.config["decoder_widths"]) != list(widths):
        codec = codec.with_detail(widths)
    return codec.requires_grad_(False).to(memory_format=torch.channels_last)


def held_out_pixels(data: str) -> Float[Tensor, "batch 3 size size"]:
    """Fixed pictures of unseen combinations."""
    return to_pixels(Drawings(resolve_in_cache(data), "combinations").pictures[:LOOK])


@torch.no_grad()
def reconstruct(codec: Any, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
    """Pictures through the code and back."""
    return decode(codec, codec.encode(pixels).latent_dist.mode())


@torch.no_grad()
def decode(codec: Any, latents: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch 3 size size"]:
    """Latents → pictures, clamped to [-1, 1], on the CPU."""
    parts = [codec.decode(part).sample.float().clamp(-1, 1).cpu() for part in latents.split(64)]
    return torch.cat(parts)


def psnr(
    one: Float[Tensor, "batch 3 size size"], other: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of pictures in [-1, 1], in dB."""
    return 10 * torch.log10(4 / (one - other).square().flatten(1).mean(dim=1).clamp(min=1e-10))
