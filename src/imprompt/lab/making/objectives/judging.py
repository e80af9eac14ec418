"""The judge's loss: read the attributes of damaged pictures, find a picture's other view in the batch.

loss = mean over attributes of CE(heads[a](f), word) + w · InfoNCE(identity(f), identity(f'))
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from imprompt.evaluation.judges.characters import CharacterJudge, build_network
from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.captions import build_caption_patterns
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.labels import attribute_loss, to_labels
from imprompt.lab.making.objectives.recognising import load_held_out, measure_held_out_figures, shake
from imprompt.lab.making.recipe import JudgeRecipe
from imprompt.runtime.settings import resolve_in_cache
from imprompt.training.objectives.objective import Objective
from imprompt.training.sheets import picture_grid

GALLERY = 200
"""Among how many characters of one style a damaged view must be found again."""


class JudgeObjective(Objective):
    """A convolutional judge, trained on two damaged views of each drawing."""

    autocasts = True

    def __init__(self, recipe: JudgeRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.drawings = Drawings(resolve_in_cache(recipe.data), "training")
        self.labels = to_labels(self.drawings.characters)
        size = self.drawings.pictures.shape[1]
        network = build_network(recipe.widths, recipe.depths, recipe.patch_size, size)
        self.judge = CharacterJudge(network, build_caption_patterns())
        self.held_out_drawings = load_held_out(recipe.data)

    @property
    def device(self) -> torch.device:
        """Where the judge is."""
        return self.judge.identity.weight.device

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything, at one rate."""
        return [{"params": list(self.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Two views of each drawing: both are read, and each must find the other."""
        generator = batch.generator(self.device)
        pixels = to_pixels(self.drawings.pictures[batch.rows]).to(self.device)
        views = damage(pixels.repeat(2, 1, 1, 1), generator)
        features = self.judge.features(views)
        labels = self.labels[batch.rows].to(self.device).repeat(2, 1)
        attributes = attribute_loss(self.judge.heads(features), labels)
        first, second = F.normalize(self.judge.identity(features).float(), dim=-1).chunk(2)
        identity = contrast(first, second, self.recipe.temperature)
        loss = attributes + self.recipe.identity_weight * identity
        return {"loss": loss, "attributes": attributes, "identity": identity}

    def held_out(self) -> dict[str, float]:
        """Accuracies on unseen drawings; how often a damaged view is found among characters of its style."""
        figures = measure_held_out_figures(
            lambda pixels: self.judge.scores(pixels), self.held_out_drawings, self.device
        )
        return figures | {f"found among {GALLERY}": self.retrieval()}

    def retrieval(self) -> float:
        """Share of damaged views whose drawing is the nearest among those of its style, at most `GALLERY`."""
        drawings = self.held_out_drawings["combinations"]
        styles = [character.style for character in drawings.characters]
        style = max(set(styles), key=styles.count)
        rows = [row for row, name in enumerate(styles) if name == style][:GALLERY]
        pixels = to_pixels(drawings.pictures[rows]).to(self.device)
        views = damage(pixels, Generator(self.device).manual_seed(0))
        nearest = (self.judge.embed(views) @ self.judge.embed(pixels).T).argmax(dim=1)
        return float((nearest == torch.arange(len(rows), device=self.device)).float().mean())

    def draw_samples(self) -> Image.Image:
        """Unseen drawings, and views of them as the judge is trained on."""
        pixels = to_pixels(self.held_out_drawings["combinations"].pictures[:12]).to(self.device)
        views = damage(pixels, Generator(self.device).manual_seed(0))
        return picture_grid([list(pixels), list(views)])

    def export(self, output: Path) -> None:
        """The judge, in a folder of its own."""
        (output / "judge").mkdir(parents=True, exist_ok=True)
        self.judge.save(output / "judge")


def contrast(
    first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"], temperature: float
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of finding each view's partner among the other views (InfoNCE)."""
    logits = first @ second.T / temperature
    partners = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


def damage(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures as an unsure model might paint them: moved, blurred and stained, each at random."""
    return stain(soften(shake(pixels, generator), generator), generator)


def soften(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures blurred, each by its own share of a 7 × 7 binomial filter."""
    share = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    row = torch.tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0], device=pixels.device) / 64
    kernel = (row[:, None] * row).expand(3, 1, 7, 7)
    blurred = F.conv2d(F.pad(pixels, (3, 3, 3, 3), mode="replicate"), kernel, groups=3)
    return pixels.lerp(blurred.to(pixels.dtype), share)


def stain(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures with faint stains of color, coarse and fine."""
    count, size, device = len(pixels), pixels.shape[-1], pixels.device
    strength = 0.12 * torch.rand(count, 2, 1, 1, 1, generator=generator, device=device)
    stains = torch.zeros_like(pixels)
    for place, grid in enumerate((8, 32)):
        coarse = torch.randn(count, 3, grid, grid, generator=generator, device=device)
        smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        stains = stains + strength[:, place] * smooth
    return (pixels + stains).clamp(-1, 1)
