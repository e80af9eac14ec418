"""The codec's stage: no descent, one closed form, and a look at what it loses."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.training.data import EmojiBatches, EmojiPictures, Mixture
from imprompt.training.recipe import CodecRecipe, in_cache
from imprompt.training.sheets import picture_grid

LOOK = 256
"""How many held-out pictures the codec is judged on."""


def fit_codec(recipe: CodecRecipe, output: Path) -> Path:
    """Fit the patch code on `steps` batches, into `<output>/vae`; its figures into `<output>/runs/codec`."""
    folder, mixture = in_cache(recipe.data), Mixture(**recipe.mixture.model_dump())
    seen = EmojiBatches(EmojiPictures(folder), recipe.batch_size, seed=recipe.seed, mixture=mixture)
    codec = PatchAutoencoder.fit(
        torch.cat([seen[step].pixels for step in range(recipe.steps)]), latent_channels=recipe.latent_channels
    )
    unseen = EmojiBatches(EmojiPictures(folder, held_out=True), LOOK, seed=recipe.seed, mixture=mixture)
    before, after = judge_codec(codec, unseen[0].pixels)
    run = output / "runs" / "codec"
    run.mkdir(parents=True, exist_ok=True)
    figures = {"held-out PSNR": float(psnr(before, after).mean()), "latent channels": recipe.latent_channels}
    (run / "log.jsonl").write_text(json.dumps(figures) + "\n")
    picture_grid([list(before[:16]), list(after[:16])], zoom=2).save(run / "sample.png")
    codec.save_pretrained(output / "vae")
    return output


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
