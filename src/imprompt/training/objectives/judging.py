"""The judge: an image encoder by which pictures are scored, apart from all that makes them.

    loss = -mean_i mean_{p ∈ P(i)} log( exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ) )

Supervised contrast, arXiv 2004.11362, equation 2. P(i) holds the other pictures of i's concept: the same
drawing once more, or another set's. Every picture is shaken, softened and stained the way generated pictures
are, so that the judge looks at what is shown and not at how crisp it is. A convolutional network with a seed
of its own: nothing in common with the image encoder that conditions the adapter but the training concepts.
"""

import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification

from imprompt.training.data import Batch, EmojiPictures
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import JudgeRecipe, in_cache
from imprompt.training.sheets import picture_grid

WHITE_SHARE = 0.4
"""How many views stand on white; the others on any plain colour."""

SHOWN = 24
"""Held-out drawings in the sample sheet."""


class JudgeObjective(StageObjective):
    """A small ConvNeXt (arXiv 2201.03545), whose class scores serve as the embedding."""

    def __init__(self, recipe: JudgeRecipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.seen = EmojiPictures(in_cache(recipe.data))
        self.unseen = EmojiPictures(in_cache(recipe.data), held_out=True)
        self.drawings_of: dict[int, list[int]] = defaultdict(list)
        for row, concept in enumerate(self.seen.concepts.tolist()):
            self.drawings_of[concept].append(row)
        self.network = build_network(recipe, self.seen.pictures.shape[1])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything, at one rate."""
        return [{"params": list(self.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Two views of each of the batch's concepts; the batch's own pictures are not used."""
        generator = batch.generator(self.network.device)
        rng = random.Random(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
        concepts = batch.concepts.tolist()
        first = [rng.choice(self.drawings_of[concept]) for concept in concepts]
        second = [self.partner(row, concept, rng) for row, concept in zip(first, concepts, strict=True)]
        pixels = self.views(self.seen, first + second, generator)
        loss = concept_contrast(self.embed(pixels), batch.concepts.repeat(2), self.recipe.temperature)
        return {"loss": loss}

    def partner(self, row: int, concept: int, rng: random.Random) -> int:
        """The same concept by another set, or the same drawing once more."""
        others = [other for other in self.drawings_of[concept] if other != row]
        return rng.choice(others) if others and rng.random() < self.recipe.other_style else row

    def views(
        self, pictures: EmojiPictures, rows: list[int], generator: Generator
    ) -> Float[Tensor, "batch 3 size size"]:
        """Drawings moved, put on plain grounds, softened and stained at random; in [-1, 1]."""
        device = self.network.device
        rgba = pictures.pictures[torch.tensor(rows)].to(device).permute(0, 3, 1, 2) / 255
        premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
        moved = shifted(premultiplied, generator)
        grounds = sample_grounds(len(rows), generator)[:, :, None, None]
        pixels = (moved[:, :3] + (1 - moved[:, 3:]) * grounds) * 2 - 1
        return stained(softened(pixels, generator), generator)

    def embed(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding"]:
        """Pictures → embeddings of length one."""
        pixels = pixels.to(self.network.device).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.network(pixels).logits, dim=-1)

    def held_out(self) -> dict[str, float]:
        """Retrieval among unseen concepts in one style: of a shaken copy, and of another set's drawing."""
        plain, copies = self.unseen_embeddings()
        style, concept = self.styles(), self.unseen.concepts
        copy, copy_chance = retrieval(copies, plain, concept, style, style)
        others = [
            retrieval(plain, plain, concept, style, torch.full_like(style, target))
            for target in style.unique().tolist()
        ]
        ranks = torch.cat([rank[style != target] for target, (rank, _) in enumerate(others)])
        chances = torch.cat([chance[style != target] for target, (_, chance) in enumerate(others)])
        found = ranks >= 0  # -1: that style does not draw the concept
        return {
            "copy@1": portion(copy < 1),
            "copy@5": portion(copy < 5),
            "copy chance@1": float(copy_chance.mean()),
            "other style@1": portion(ranks[found] < 1),
            "other style@5": portion(ranks[found] < 5),
            "other style chance@1": float(chances[found].mean()),
        }

    def unseen_embeddings(self) -> tuple[Tensor, Tensor]:
        """Embeddings of all unseen drawings: plain on white, and as a shaken copy."""
        rows, generator = list(range(len(self.unseen))), Generator(self.network.device).manual_seed(0)
        pieces = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        plain = [self.embed(self.unseen.plain(piece)).cpu() for piece in pieces]
        copies = [self.embed(self.views(self.unseen, piece, generator)).cpu() for piece in pieces]
        return torch.cat(plain), torch.cat(copies)

    def styles(self) -> Int[Tensor, " drawings"]:
        """The unseen drawings' sets, numbered."""
        names = sorted({drawing.icon_set for drawing in self.unseen.drawings})
        return torch.tensor([names.index(drawing.icon_set) for drawing in self.unseen.drawings])

    def picture(self) -> Image.Image:
        """Unseen drawings, a view of each, and the other sets' drawing that the judge takes for the same."""
        step = max(1, len(self.unseen) // SHOWN)
        rows = list(range(0, len(self.unseen), step))[:SHOWN]
        plain, _ = self.unseen_embeddings()
        similarity = plain[rows] @ plain.T
        style = self.styles()
        nearest = similarity.masked_fill(style[rows][:, None] == style, -2.0).argmax(dim=1).tolist()
        views = self.views(self.unseen, rows, Generator(self.network.device).manual_seed(0))
        return picture_grid([list(self.unseen.plain(rows)), list(views), list(self.unseen.plain(nearest))])

    def export(self, output: Path) -> None:
        """The judge in transformers' folder format; it takes pictures in [-1, 1].

        The text encoder of the judge that was there before goes: it reads for another one.
        """
        shutil.rmtree(output / "judge" / "text", ignore_errors=True)
        self.network.save_pretrained(output / "judge")


def build_network(recipe: JudgeRecipe, image_size: int) -> ConvNextForImageClassification:
    """A ConvNeXt small enough for a processor."""
    config = ConvNextConfig(
        image_size=image_size,
        patch_size=recipe.patch_size,
        num_stages=len(recipe.widths),
        hidden_sizes=list(recipe.widths),
        depths=list(recipe.depths),
        # Scales near zero are for deep networks: they would keep five layers out of a short training.
        layer_scale_init_value=0.0,
        initializer_range=0.05,
        num_labels=recipe.embedding_dim,  # pyright: ignore[reportCallIssue]
    )
    network = ConvNextForImageClassification(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def concept_contrast(
    embeddings: Float[Tensor, "batch dim"], concepts: Int[Tensor, " batch"], temperature: float
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the other pictures of a picture's concept among all other pictures."""
    concepts = concepts.to(embeddings.device)
    itself = torch.eye(len(concepts), dtype=torch.bool, device=embeddings.device)
    same = (concepts[:, None] == concepts) & ~itself
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, float("-inf"))
    likelihood = logits.log_softmax(dim=1).masked_fill(~same, 0.0)
    return -(likelihood.sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def retrieval(
    queries: Float[Tensor, "drawings dim"],
    gallery: Float[Tensor, "drawings dim"],
    concepts: Int[Tensor, " drawings"],
    styles: Int[Tensor, " drawings"],
    targets: Int[Tensor, " drawings"],
) -> tuple[Int[Tensor, " drawings"], Float[Tensor, " drawings"]]:
    """Rank (from 0; ties count against; -1 where there is none) of each query's concept among the gallery's
    drawings of its target style, and the chance of being first.
    """
    allowed = targets[:, None] == styles
    right = allowed & (concepts[:, None] == concepts)
    similarity = (queries @ gallery.T).masked_fill(~allowed, -2.0)
    best = similarity.masked_fill(~right, -2.0).amax(dim=1)
    ranks = ((similarity >= best[:, None]) & allowed & ~right).sum(dim=1)
    return ranks.masked_fill(~right.any(dim=1), -1), 1 / allowed.sum(dim=1)


def shifted(
    pictures: Float[Tensor, "batch channels size size"], generator: Generator
) -> Float[Tensor, "batch channels size size"]:
    """Pictures up to a fifth larger or smaller and shifted by up to a tenth; what comes in is empty."""
    draw = torch.rand(len(pictures), 3, generator=generator, device=pictures.device) * 2 - 1
    transform = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 + 0.2 * draw[:, 0]
    transform[:, :, 2] = 0.2 * draw[:, 1:]
    grid = F.affine_grid(transform, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def sample_grounds(count: int, generator: Generator) -> Float[Tensor, "count 3"]:
    """Plain colours in [0, 1], white more often than any other."""
    device = generator.device
    colours = torch.rand(count, 3, generator=generator, device=device)
    white = torch.rand(count, 1, generator=generator, device=device) < WHITE_SHARE
    return colours.masked_fill(white, 1.0)


def softened(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures blurred, each by its own share of a 7 × 7 binomial filter."""
    share = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    row = torch.tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0], device=pixels.device) / 64
    kernel = (row[:, None] * row).expand(3, 1, 7, 7)
    blurred = F.conv2d(F.pad(pixels, (3, 3, 3, 3), mode="replicate"), kernel, groups=3)
    return pixels.lerp(blurred, share)


def stained(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures brighter or darker, flatter or harder, with stains of colour: what an unsure model paints."""
    count, device = len(pixels), pixels.device
    draw = torch.rand(count, 3, 1, 1, 1, generator=generator, device=device)
    coarse = torch.randn(count, 3, 8, 8, generator=generator, device=device)
    stains = F.interpolate(coarse, size=pixels.shape[-1], mode="bilinear", align_corners=False)
    contrast, brightness, strength = 0.8 + 0.3 * draw[:, 0], 0.2 * draw[:, 1] - 0.1, 0.15 * draw[:, 2]
    return (contrast * pixels + brightness + strength * stains).clamp(-1, 1)


def portion(claims: Tensor) -> float:
    """How many of the claims are true."""
    return float(claims.float().mean())
