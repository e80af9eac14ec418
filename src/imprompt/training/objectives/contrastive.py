"""The text/image pair: a picture is told by its caption, and its embedding remembers a thumbnail.

    logits = s · image · textᵀ      loss = ½ (CE over rows + CE over columns)       (CLIP, arXiv 2103.00020)

Other pictures of the same concept in the batch are neither right nor wrong: they are masked.
"""

import random
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from imprompt.training.captions import every_caption
from imprompt.training.data import Batch, EmojiPictures
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import PairRecipe, in_cache
from imprompt.training.vocabulary import train_tokenizer

THUMBNAIL = 16
"""Side of the thumbnail that is read off the image embedding, in pixels."""
MAX_LOG_SCALE = 4.6052
"""ln 100, CLIP's ceiling on the logits' scale."""


class PairObjective(StageObjective):
    """A small CLIP with a linear thumbnail reader on its image embedding."""

    def __init__(self, recipe: PairRecipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        seen = EmojiPictures(in_cache(recipe.data))
        self.unseen = EmojiPictures(in_cache(recipe.data), held_out=True)
        captions = every_caption(seen.drawings, random.Random(recipe.seed))
        self.tokenizer = train_tokenizer(captions, size=recipe.vocabulary, length=recipe.text_length)
        self.clip = CLIPModel(pair_config(recipe, self.tokenizer, seen.pictures.shape[1]))
        self.thumbnail = nn.Linear(recipe.embedding_dim, 3 * THUMBNAIL**2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything, at one rate."""
        return [{"params": list(self.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Caption contrast and thumbnail error, weighted by the recipe."""
        generator = batch.generator(self.device)
        pixels = shaken(batch.pixels.to(self.device), generator)
        images, texts = self.embed_images(pixels), self.embed_texts(batch.captions)
        caption = contrast(images, texts, self.clip.logit_scale, batch.concepts.to(self.device))
        thumbnail = F.mse_loss(self.thumbnail(images), shrunk(pixels))
        loss = caption + self.recipe.thumbnail_weight * thumbnail
        return {"loss": loss, "caption": caption, "thumbnail": thumbnail}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.clip.device

    def embed_images(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding"]:
        """Pictures → projected embeddings, not normalised."""
        return self.clip.visual_projection(self.clip.vision_model(pixels).pooler_output)

    def embed_texts(self, captions: list[str]) -> Float[Tensor, "batch embedding"]:
        """Captions → projected embeddings, not normalised."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        ids = tokens.input_ids.to(self.device)
        return self.clip.text_projection(self.clip.text_model(ids).pooler_output)

    def held_out(self) -> dict[str, float]:
        """Share of unseen pictures on white whose bare name ranks first, or in five, of all unseen names."""
        names = sorted({drawing.concept for drawing in self.unseen.drawings})
        rows = list(range(len(self.unseen)))
        images = torch.cat(
            [self.embed_images(self.unseen.plain(part).to(self.device)) for part in chunks(rows)]
        )
        error = F.mse_loss(self.thumbnail(images).cpu(), shrunk(self.unseen.plain(rows)))
        texts = self.embed_texts(names)
        similarity = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).cpu()
        ranks = (similarity > similarity.gather(1, self.unseen.concepts[:, None])).sum(dim=1)
        return {
            "name@1": float((ranks < 1).float().mean()),
            "name@5": float((ranks < 5).float().mean()),
            "name chance@1": 1 / len(names),
            "thumbnail": float(error),
        }

    def export(self, output: Path) -> None:
        """`image_encoder`, `text_encoder`, `tokenizer` for pipelines, and the whole pair under `pair`."""
        self.clip.save_pretrained(output / "pair")
        self.tokenizer.save_pretrained(output / "pair")
        self.tokenizer.save_pretrained(output / "tokenizer")
        config = self.clip.config
        vision = CLIPVisionModelWithProjection(cast(CLIPVisionConfig, config.vision_config))
        vision.load_state_dict(matching(self.clip.state_dict(), vision.state_dict()))
        vision.save_pretrained(output / "image_encoder")
        text = CLIPTextModel(cast(CLIPTextConfig, config.text_config))
        text.load_state_dict(matching(self.clip.state_dict(), text.state_dict()))
        text.save_pretrained(output / "text_encoder")
        write_preprocessor(output / "image_encoder", self.unseen.pictures.shape[1])


def pair_config(recipe: PairRecipe, tokenizer: CLIPTokenizer, image_size: int) -> CLIPConfig:
    """The small CLIP's shape."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_width // 64,
        max_position_embeddings=recipe.text_length,
        projection_dim=recipe.embedding_dim,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    vision = CLIPVisionConfig(
        hidden_size=recipe.image_width,
        intermediate_size=4 * recipe.image_width,
        num_hidden_layers=recipe.image_layers,
        num_attention_heads=recipe.image_width // 64,
        image_size=image_size,
        patch_size=recipe.image_patch,
        projection_dim=recipe.embedding_dim,
    )
    return CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=recipe.embedding_dim
    )


def contrast(
    left: Float[Tensor, "batch dim"],
    right: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    concepts: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of telling each left's partner among the rights, and back."""
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
    logits = scale * F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T
    same = (concepts[:, None] == concepts) & ~torch.eye(len(concepts), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same, float("-inf"))
    partners = torch.arange(len(left), device=logits.device)
    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


def shaken(
    pixels: Float[Tensor, "batch 3 size size"], generator: Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures a little larger or smaller, shifted, brighter or darker; edges run on."""
    count, device = len(pixels), pixels.device
    draw = torch.rand(count, 4, generator=generator, device=device) * 2 - 1
    transform = torch.zeros(count, 2, 3, device=device)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 + 0.12 * draw[:, 0]
    transform[:, :, 2] = 0.1 * draw[:, 1:3]
    grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return (moved + 0.08 * draw[:, 3, None, None, None]).clamp(-1, 1)


def shrunk(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch values"]:
    """Thumbnails, flattened."""
    return F.interpolate(pixels, size=THUMBNAIL, mode="area").flatten(1)


def chunks(rows: list[int], size: int = 256) -> list[list[int]]:
    """Rows in pieces that fit into memory."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def matching(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of the whole CLIP that one of its halves has, whether or not the half keeps its prefix."""
    found = {}
    for name in wanted:
        source = next(n for n in (name, f"text_model.{name}", f"vision_model.{name}") if n in state)
        found[name] = state[source].clone()
    return found


def write_preprocessor(folder: Path, size: int) -> None:
    """How a picture becomes this encoder's pixels: `size` × `size`, range [-1, 1]."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    half: Any = [0.5, 0.5, 0.5]
    shape: Any = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    CLIPImageProcessorPil(image_mean=half, image_std=half, **shape).save_pretrained(folder)
