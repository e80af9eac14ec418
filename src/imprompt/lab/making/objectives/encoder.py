"""The image encoder's loss: every attribute, and a thumbnail, are read from the embedding linearly.

    loss = mean over attributes of CE(heads[a](embedding), word) + w ‖thumbnail - W embedding‖²

Attributes make the embedding describe a character; the thumbnail preserves what has no word.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from imprompt.evaluation.judges.characters import AttributeHeads
from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.captions import build_caption_patterns
from imprompt.lab.making.characters import Split
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.labels import attribute_loss, measure_accuracies, to_labels
from imprompt.lab.making.objectives.stage import StageObjective
from imprompt.lab.making.recipe import EncoderRecipe, JudgeRecipe
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.sheets import picture_grid

THUMBNAIL = 24
"""Side of the thumbnail, in pixels."""

LOOK = 1000
"""The number of pictures of each held-out split."""


class ReadingObjective(StageObjective):
    """An objective that reads attributes; it is tested on the splits that training never sees.

    Attributes:
        labels: of the drawings for training
        held_out_drawings: split → drawings
        size: width and height of a drawing, px
    """

    def __init__(self, recipe: EncoderRecipe | JudgeRecipe) -> None:
        super().__init__(recipe)
        self.labels = to_labels(self.drawings.characters)
        self.size = self.drawings.pictures.shape[1]
        self.held_out_drawings = load_held_out(recipe.data)


class EncoderObjective(ReadingObjective):
    """A CLIP vision tower that recognizes attributes."""

    def __init__(self, recipe: EncoderRecipe, output: Path) -> None:
        super().__init__(recipe)
        self.encoder = build_encoder(recipe, self.size)
        start_from_components(self.encoder, to_pixels(self.drawings.pictures[:LOOK]))
        self.heads = AttributeHeads(recipe.embedding_dim, build_caption_patterns())
        self.thumbnail = nn.Linear(recipe.embedding_dim, 3 * THUMBNAIL**2)
        self.trained_encoder = self.compile_trained(self.encoder)

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return cross-entropy of the attributes and error of the thumbnail, on slightly moved pictures."""
        pixels = shake(self.pixels(batch), batch.make_generator(self.device))
        embeddings = self.trained_encoder[0](pixels).image_embeds
        attributes = attribute_loss(self.heads(embeddings), self.labels[batch.rows].to(self.device))
        thumbnail = F.mse_loss(self.thumbnail(embeddings).float(), shrink(pixels))
        loss = attributes + self.recipe.thumbnail_weight * thumbnail
        return {"loss": loss, "attributes": attributes, "thumbnail": thumbnail}

    def embed(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding"]:
        """Return image embeddings of pictures."""
        return self.encoder(pixels).image_embeds

    def measure_held_out(self) -> dict[str, float]:
        """Return the accuracy of every attribute on unseen combinations, and the mean on each split."""
        return measure_held_out_figures(
            lambda pixels: self.heads(self.embed(pixels)), self.held_out_drawings, self.device
        )

    def draw_samples(self) -> Image.Image:
        """Draw unseen pictures, and the thumbnails that are read from their embeddings."""
        pixels = next(iterate_pixels(self.held_out_drawings["combinations"], self.device))[:12]
        small = self.thumbnail(self.embed(pixels)).view(-1, 3, THUMBNAIL, THUMBNAIL).float()
        remembered = F.interpolate(small, size=pixels.shape[-1])
        return picture_grid([list(pixels), list(remembered)])

    def export(self, output: Path) -> None:
        """Write the encoder in transformers' folder format, with its preprocessing."""
        self.encoder.save_pretrained(output / "image_encoder")
        write_preprocessor(output / "image_encoder", self.size)


def measure_held_out_figures(
    score: Callable[[Tensor], dict[str, Tensor]], splits: Mapping[Split, Drawings], device: torch.device
) -> dict[str, float]:
    """Return the accuracy of every attribute on unseen combinations, and the mean on every split."""
    figures = {}
    for split, drawings in splits.items():
        scores = [score(pixels) for pixels in iterate_pixels(drawings, device)]
        shares = measure_accuracies(scores, to_labels(drawings.characters[:LOOK]))
        if split == "combinations":
            figures |= {f"{name} read": share for name, share in shares.items()}
        figures[f"read of unseen {split}"] = sum(shares.values()) / len(shares)
    return figures


def load_held_out(data: str) -> dict[Split, Drawings]:
    """Load the splits that training never uses."""
    splits: tuple[Split, ...] = "combinations", "parts", "styles"
    return {split: Drawings(resolve_in_cache(data), split) for split in splits}


def iterate_pixels(drawings: Drawings, device: torch.device, size: int = 250) -> Iterator[Tensor]:
    """Yield the first pictures of a split as pixels, in pieces that fit into memory."""
    for start in range(0, min(LOOK, len(drawings)), size):
        yield to_pixels(drawings.pictures[start : start + size]).to(device)


def build_encoder(recipe: EncoderRecipe, image_size: int) -> CLIPVisionModelWithProjection:
    """Build a small CLIP vision tower with random weights, with the attention that a CPU trains fastest."""
    config = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 64,
        image_size=image_size,
        patch_size=recipe.patch_size,
        projection_dim=recipe.embedding_dim,
    )
    config._attn_implementation = "eager"
    return CLIPVisionModelWithProjection(config)


@torch.no_grad()
def start_from_components(
    encoder: CLIPVisionModelWithProjection, pixels: Float[Tensor, "batch 3 height width"]
) -> None:
    """Initialize the patch embedding with the principal components of these pictures' patches."""
    patches = encoder.vision_model.embeddings.patch_embedding
    width, size = patches.weight.shape[0], patches.weight.shape[-1]
    components = PatchAutoencoder.fit(pixels, latent_channels=width, patch_size=size).encoder.weight
    patches.weight.copy_(components)


def shake(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Make pictures slightly larger or smaller, shifted, brighter or darker; the border is repeated."""
    count, device = len(pixels), pixels.device
    draw = torch.rand(count, 4, generator=generator, device=device) * 2 - 1
    transform = torch.zeros(count, 2, 3, device=device)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 + 0.08 * draw[:, 0]
    transform[:, :, 2] = 0.08 * draw[:, 1:3]
    grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return (moved + 0.05 * draw[:, 3, None, None, None]).clamp(-1, 1)


def shrink(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch values"]:
    """Return flattened thumbnails."""
    return F.interpolate(pixels, size=THUMBNAIL, mode="area").flatten(1)


def write_preprocessor(folder: Path, size: int) -> None:
    """Write how a picture becomes this encoder's pixels: `size` × `size`, range [-1, 1]."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    half: Any = [0.5, 0.5, 0.5]
    shape: Any = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    CLIPImageProcessorPil(image_mean=half, image_std=half, **shape).save_pretrained(folder)
