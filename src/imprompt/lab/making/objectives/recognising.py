"""The image encoder's loss: every attribute is read off the embedding linearly, and so is a thumbnail.

    loss = mean over attributes of CE(heads[a](embedding), word) + w ‖thumbnail - W embedding‖²

Attributes make the embedding say what a character is; the thumbnail keeps in it what has no word.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from imprompt.lab.making.batches import Batch, to_pixels
from imprompt.lab.making.characters import Character, Split
from imprompt.lab.making.dataset import Drawings
from imprompt.lab.making.recipe import EncoderRecipe
from imprompt.lab.making.vocabulary import ATTRIBUTES, load_vocabulary
from imprompt.settings import in_cache
from imprompt.training.objectives.objective import Objective
from imprompt.training.sheets import picture_grid

THUMBNAIL = 24
"""Side of the thumbnail that is read off the embedding, in pixels."""

LOOK = 1000
"""How many pictures of each held-out split are read."""

LABELS = ("style", *ATTRIBUTES)
NOT_DRAWN = -100
"""The label of an attribute that a style does not draw: cross-entropy leaves it out."""


class EncoderObjective(Objective):
    """A CLIP vision tower that recognises attributes."""

    autocasts = True

    def __init__(self, recipe: EncoderRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.drawings = Drawings(in_cache(recipe.data), "training")
        self.labels = to_labels(self.drawings.characters)
        size = self.drawings.pictures.shape[1]
        self.encoder = build_encoder(recipe, size)
        self.heads = AttributeHeads(recipe.embedding_dim)
        self.thumbnail = nn.Linear(recipe.embedding_dim, 3 * THUMBNAIL**2)
        self.held_out_drawings = {split: Drawings(in_cache(recipe.data), split) for split in held_out_splits()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything, at one rate."""
        return [{"params": list(self.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the attributes and error of the thumbnail, on pictures a little moved."""
        device = self.encoder.device
        pixels = to_pixels(self.drawings.pictures[batch.rows]).to(device)
        pixels = shake(pixels, batch.generator(device))
        embeddings = self.embed(pixels)
        attributes = self.heads.loss(embeddings, self.labels[batch.rows].to(device))
        thumbnail = F.mse_loss(self.thumbnail(embeddings).float(), shrink(pixels))
        loss = attributes + self.recipe.thumbnail_weight * thumbnail
        return {"loss": loss, "attributes": attributes, "thumbnail": thumbnail}

    def embed(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding"]:
        """Pictures → image embeddings."""
        return self.encoder(pixels).image_embeds

    def held_out(self) -> dict[str, float]:
        """Accuracy of every attribute on unseen combinations, and the mean on each unseen split."""
        figures = {}
        for split, drawings in self.held_out_drawings.items():
            accuracies = self.read(drawings)
            if split == "combinations":
                figures |= {f"{name} read": share for name, share in accuracies.items()}
            known = [share for name, share in accuracies.items() if share == share]
            figures[f"read of unseen {split}"] = sum(known) / len(known)
        return figures

    def read(self, drawings: Drawings) -> dict[str, float]:
        """Attribute → share of a split's pictures on which it is read right."""
        labels = to_labels(drawings.characters[:LOOK])
        scores = [self.heads(self.embed(pixels)) for pixels in pixel_chunks(drawings, self.encoder.device)]
        return {name: accuracy([s[name] for s in scores], labels[:, i]) for i, name in enumerate(LABELS)}

    def picture(self) -> Image.Image:
        """Unseen pictures, and the thumbnails that their embeddings remember."""
        pixels = next(pixel_chunks(self.held_out_drawings["combinations"], self.encoder.device))[:12]
        small = self.thumbnail(self.embed(pixels)).view(-1, 3, THUMBNAIL, THUMBNAIL).float()
        remembered = F.interpolate(small, size=pixels.shape[-1])
        return picture_grid([list(pixels), list(remembered)])

    def export(self, output: Path) -> None:
        """The encoder in transformers' folder format, with its preprocessing."""
        self.encoder.save_pretrained(output / "image_encoder")
        write_preprocessor(output / "image_encoder", self.drawings.pictures.shape[1])


class AttributeHeads(nn.Module):
    """One linear classifier for every attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        words = load_vocabulary().words
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(words(name))) for name in LABELS})

    def forward(self, embeddings: Float[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Attribute → scores of its words, (batch, words)."""
        return {name: head(embeddings) for name, head in self.heads.items()}

    def loss(
        self, embeddings: Float[Tensor, "batch width"], labels: Int[Tensor, "batch attributes"]
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over attributes, each over the pictures that have it."""
        scores = self(embeddings)
        losses = [
            F.cross_entropy(scores[name].float(), labels[:, i], ignore_index=NOT_DRAWN, reduction="sum")
            / (labels[:, i] != NOT_DRAWN).sum().clamp(min=1)
            for i, name in enumerate(LABELS)
        ]
        return torch.stack(losses).mean()


def to_labels(characters: Sequence[Character]) -> Int[Tensor, "characters attributes"]:
    """The place of every attribute's word in the vocabulary; `NOT_DRAWN` where there is none."""
    words = {name: load_vocabulary().words(name) for name in LABELS}
    rows = [[place_of(character.get(name), words[name]) for name in LABELS] for character in characters]
    return torch.tensor(rows)


def place_of(word: str | None, words: tuple[str, ...]) -> int:
    """Where a word stands, or `NOT_DRAWN` if it is not there (a style that is never trained on)."""
    return words.index(word) if word in words else NOT_DRAWN


def accuracy(scores: Sequence[Tensor], labels: Int[Tensor, " pictures"]) -> float:
    """Share of the pictures with this attribute on which its word scores highest; NaN if none has it."""
    right = (torch.cat(list(scores)).argmax(dim=1).cpu() == labels)[labels != NOT_DRAWN]
    return float(right.float().mean())


def held_out_splits() -> tuple[Split, ...]:
    """The splits that training never sees."""
    return "combinations", "parts", "styles"


def pixel_chunks(drawings: Drawings, device: torch.device, size: int = 250) -> Any:
    """The first pictures of a split as pixels, in pieces that fit into memory."""
    for start in range(0, min(LOOK, len(drawings)), size):
        yield to_pixels(drawings.pictures[start : start + size]).to(device)


def build_encoder(recipe: EncoderRecipe, image_size: int) -> CLIPVisionModelWithProjection:
    """A small CLIP vision tower with random weights."""
    config = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 64,
        image_size=image_size,
        patch_size=recipe.patch_size,
        projection_dim=recipe.embedding_dim,
    )
    return CLIPVisionModelWithProjection(config)


def shake(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures a little larger or smaller, shifted, brighter or darker; edges run on."""
    count, device = len(pixels), pixels.device
    draw = torch.rand(count, 4, generator=generator, device=device) * 2 - 1
    transform = torch.zeros(count, 2, 3, device=device)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 + 0.08 * draw[:, 0]
    transform[:, :, 2] = 0.08 * draw[:, 1:3]
    grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return (moved + 0.05 * draw[:, 3, None, None, None]).clamp(-1, 1)


def shrink(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch values"]:
    """Thumbnails, flattened."""
    return F.interpolate(pixels, size=THUMBNAIL, mode="area").flatten(1)


def write_preprocessor(folder: Path, size: int) -> None:
    """How a picture becomes this encoder's pixels: `size` × `size`, range [-1, 1]."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    half: Any = [0.5, 0.5, 0.5]
    shape: Any = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    CLIPImageProcessorPil(image_mean=half, image_std=half, **shape).save_pretrained(folder)
