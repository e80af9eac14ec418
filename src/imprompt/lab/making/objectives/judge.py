"""The judge's loss: read the attributes of damaged pictures, find a picture's other view in the batch.

loss = mean over attributes of CE(heads[a](f), word) + w · InfoNCE(identity(f), identity(f'))
"""

import math
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from imprompt.evaluation.judges.characters import CharacterJudge, build_network
from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.captions import build_caption_patterns
from imprompt.lab.making.labels import attribute_loss
from imprompt.lab.making.objectives.encoder import ReadingObjective, measure_held_out_figures, shake
from imprompt.lab.making.recipe import JudgeRecipe
from imprompt.training.sheets import picture_grid

GALLERY = 200
"""The number of characters of one style among which a damaged view must be found."""

BINOMIAL = tuple(math.comb(6, i) / 64 for i in range(7))
"""A binomial filter: a blur of 1.2 pixels."""


class JudgeObjective(ReadingObjective):
    """A convolutional judge, trained on damaged views of drawings, two of them for a quarter."""

    def __init__(self, recipe: JudgeRecipe, output: Path) -> None:
        super().__init__(recipe)
        network = build_network(recipe.widths, recipe.depths, recipe.patch_size, self.size)
        self.judge = CharacterJudge(network, build_caption_patterns())

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the loss of a view of each drawing, and of a second view of the first quarter of them.

        All views are read. Where there are two views of a drawing, each must find the other.
        """
        pixels, labels = self.pixels(batch), self.labels[batch.rows].to(self.device)
        paired = len(pixels) // 4
        views = damage(torch.cat((pixels, pixels[:paired])), batch.make_generator(self.device))
        features = self.judge.features(views)
        attributes = attribute_loss(self.judge.heads(features), torch.cat((labels, labels[:paired])))
        identity_embeddings = F.normalize(self.judge.identity(features).float(), dim=-1)
        first, second = identity_embeddings[:paired], identity_embeddings[-paired:]
        identity = contrast(first, second, self.recipe.temperature)
        loss = attributes + self.recipe.identity_weight * identity
        return {"loss": loss, "attributes": attributes, "identity": identity}

    def measure_held_out(self) -> dict[str, float]:
        """Return accuracies on unseen drawings, and how often a damaged view is found in its style."""
        figures = measure_held_out_figures(
            lambda pixels: self.judge.scores(pixels), self.held_out_drawings, self.device
        )
        return figures | {f"found among {GALLERY}": self.measure_retrieval()}

    def measure_retrieval(self) -> float:
        """Return the share of damaged views that are nearest to their drawing, among `GALLERY` of a style."""
        drawings = self.held_out_drawings["combinations"]
        styles = [character.style for character in drawings.characters]
        style = max(set(styles), key=styles.count)
        rows = [row for row, name in enumerate(styles) if name == style][:GALLERY]
        pixels = to_pixels(drawings.pictures[rows]).to(self.device)
        views = damage(pixels, Generator(self.device).manual_seed(0))
        nearest = (self.judge.embed(views) @ self.judge.embed(pixels).T).argmax(dim=1)
        return float((nearest == torch.arange(len(rows), device=self.device)).float().mean())

    def draw_samples(self) -> Image.Image:
        """Draw unseen drawings, and damaged views of them."""
        pixels = to_pixels(self.held_out_drawings["combinations"].pictures[:12]).to(self.device)
        views = damage(pixels, Generator(self.device).manual_seed(0))
        return picture_grid([list(pixels), list(views)])

    def export(self, output: Path) -> None:
        """Write the judge into its own folder."""
        (output / "judge").mkdir(parents=True, exist_ok=True)
        self.judge.save(output / "judge")


def contrast(
    first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"], temperature: float
) -> Float[Tensor, ""]:
    """Return how badly each view finds its partner among the other views (InfoNCE)."""
    logits = first @ second.T / temperature
    partners = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


def damage(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Damage pictures as an unsure model might: moved, blurred and stained, each at random."""
    return stain(soften(shake(pixels, generator), generator), generator)


def soften(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Blur pictures, each by its own share of a 7 × 7 binomial filter."""
    size = pixels.shape[-1]
    share = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    padded = F.pad(pixels, (3, 3, 3, 3), mode="replicate")
    # Sums of shifted pictures take half the time of a convolution on a CPU.
    rows = cast(Tensor, sum(weight * padded[..., i : i + size] for i, weight in enumerate(BINOMIAL)))
    blurred = sum(weight * rows[..., i : i + size, :] for i, weight in enumerate(BINOMIAL))
    return pixels.lerp(cast(Tensor, blurred), share)


def stain(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Add faint stains of color, coarse and fine."""
    count, size, device = len(pixels), pixels.shape[-1], pixels.device
    strength = 0.12 * torch.rand(count, 2, 1, 1, 1, generator=generator, device=device)
    stains = torch.zeros_like(pixels)
    for place, grid in enumerate((8, 32)):
        coarse = torch.randn(count, 3, grid, grid, generator=generator, device=device)
        smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        stains = stains + strength[:, place] * smooth
    return (pixels + stains).clamp(-1, 1)
