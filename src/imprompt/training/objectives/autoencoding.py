"""The autoencoder: a closed form first (no descent), then a refinement learned on noised latents.

loss = ‖x - D(E(x) + σ ε)‖²        σ uniform between 0 and the recipe's noise
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.training.data import Batch, EmojiBatches, EmojiPictures
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import CodecRecipe, DecoderRecipe, Recipe, in_cache
from imprompt.training.sheets import picture_grid

LOOK = 256
"""How many held-out pictures the codec is judged on."""


def fit_codec(recipe: CodecRecipe, output: Path) -> Path:
    """Fit the patch code on `steps` batches, into `<output>/vae`; its figures into `<output>/runs/codec`."""
    pictures = EmojiPictures(in_cache(recipe.data))
    seen = EmojiBatches(pictures, recipe.batch_size, seed=recipe.seed, mixture=recipe.mixture)
    codec = PatchAutoencoder.fit(
        torch.cat([seen[step].pixels for step in range(recipe.steps)]), latent_channels=recipe.latent_channels
    )
    before, after = judge_codec(codec, unseen_pixels(recipe))
    run = output / "runs" / "codec"
    run.mkdir(parents=True, exist_ok=True)
    figures = {"held-out PSNR": float(psnr(before, after).mean()), "latent channels": recipe.latent_channels}
    (run / "log.jsonl").write_text(json.dumps(figures) + "\n")
    picture_grid([list(before[:16]), list(after[:16])], zoom=2).save(run / "sample.png")
    codec.save_pretrained(output / "vae")
    return output


class DecoderObjective(StageObjective):
    """The refinement after the linear code; the code itself stays as it is."""

    def __init__(self, recipe: DecoderRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        code = PatchAutoencoder.from_pretrained(output / "vae")
        self.codec: Any = PatchAutoencoder(
            latent_channels=code.config["latent_channels"], refine_width=recipe.width
        ).requires_grad_(False)
        self.codec.load_state_dict(code.state_dict(), strict=False)
        self.refinement = cast(nn.Sequential, self.codec.refine).requires_grad_(True)
        self.unseen = unseen_pixels(recipe)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The refinement."""
        return [{"params": list(self.refinement.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The squared error of pictures from noised latents."""
        generator = batch.generator(self.codec.device)
        pixels = batch.pixels.to(self.codec.device)
        latents = self.codec.encode(pixels).latent_dist.mode()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        sigma = torch.rand(len(latents), 1, 1, 1, generator=generator, device=latents.device)
        decoded = self.codec.decode(latents + self.recipe.noise * sigma * noise).sample
        return {"loss": F.mse_loss(decoded, pixels)}

    def held_out(self) -> dict[str, float]:
        """PSNR on unseen pictures, from clean latents and from the noisiest."""
        clean = psnr(*judge_codec(self.codec, self.unseen)).mean()
        noisy = psnr(self.unseen, self.from_noised()).mean()
        return {"PSNR": float(clean), "PSNR from noised": float(noisy)}

    def from_noised(self) -> Tensor:
        """Unseen pictures through latents with the recipe's most noise."""
        latents = self.codec.encode(self.unseen.to(self.codec.device)).latent_dist.mode()
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(latents.device)
        return self.codec.decode(latents + self.recipe.noise * noise).sample.clamp(-1, 1).cpu()

    def picture(self) -> Image.Image:
        """Unseen pictures, decoded, and decoded from noised latents."""
        decoded = judge_codec(self.codec, self.unseen)[1]
        rows = [list(pictures[:16]) for pictures in (self.unseen, decoded, self.from_noised())]
        return picture_grid(rows, zoom=2)

    def export(self, output: Path) -> None:
        """The autoencoder, in its own place and in the base's if there is one already."""
        self.codec.save_pretrained(output / "vae")
        if (output / "base").is_dir():
            self.codec.save_pretrained(output / "base" / "vae")


def unseen_pixels(recipe: Recipe) -> Float[Tensor, "batch 3 size size"]:
    """Fixed pictures of held-out concepts, mixed as the recipe has it."""
    pictures = EmojiPictures(in_cache(recipe.data), held_out=True)
    return EmojiBatches(pictures, LOOK, seed=recipe.seed, mixture=recipe.mixture)[0].pixels


@torch.no_grad()
def judge_codec(codec: PatchAutoencoder, pixels: Float[Tensor, "batch 3 size size"]) -> tuple[Tensor, Tensor]:
    """Pictures, and the same pictures after the code."""
    latents = codec.encode(pixels).latent_dist.mode()  # type: ignore[union-attr]
    return pixels, codec.decode(latents).sample.clamp(-1, 1)  # type: ignore[union-attr]


def psnr(
    one: Float[Tensor, "batch 3 size size"], other: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of pictures in [-1, 1], in dB."""
    return 10 * torch.log10(4 / (one - other).square().flatten(1).mean(dim=1).clamp(min=1e-10))
