"""The judge's text encoder: locked-image tuning (LiT, arXiv 2111.07991).

    logits = s · image · textᵀ      loss = ½ (CE over rows + CE over columns)      image frozen

The judge's features of the training drawings stay as they are; a small text encoder learns to send captions
to them. So pictures can be judged by captions, with encoders that no part of the model has seen. Captions are
names, keywords or both, with or without style and ground, as the evaluation's prompts are.
"""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ConvNextForImageClassification,
)

from imprompt.errors import ConfigError
from imprompt.training.captions import ending, every_caption, sample_ground
from imprompt.training.data import Batch, EmojiPictures, ground_colour
from imprompt.training.emoji import Drawing
from imprompt.training.objectives.contrastive import chunks, contrast
from imprompt.training.objectives.objective import StageObjective
from imprompt.training.recipe import JudgeTextRecipe, in_cache
from imprompt.training.vocabulary import train_tokenizer

FIRST_LOG_SCALE = 2.6593
"""ln(1 / 0.07), where CLIP's logits' scale begins."""

PROMPT = "{}, on a red background"
"""A prompt of the evaluation, which says more than the name."""


class JudgeTextObjective(StageObjective):
    """A small CLIP text encoder beside a locked judge, whose features are computed once, before training."""

    def __init__(self, recipe: JudgeTextRecipe, output: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.seen = EmojiPictures(in_cache(recipe.data))
        self.unseen = EmojiPictures(in_cache(recipe.data), held_out=True)
        self.drawings_of: dict[int, list[int]] = defaultdict(list)
        for row, concept in enumerate(self.seen.concepts.tolist()):
            self.drawings_of[concept].append(row)
        judge = load_locked(in_cache(recipe.weights) if recipe.weights else output / "judge")
        self.grounds = [["white"] * len(self.seen), *self.named_grounds(recipe.grounds - 1)]
        self.targets = torch.stack([features(judge, self.seen, names) for names in self.grounds])
        self.unseen_targets = features(judge, self.unseen, ["white"] * len(self.unseen))
        captions = every_caption(self.seen.drawings, random.Random(recipe.seed))
        self.tokenizer = train_tokenizer(captions, size=recipe.vocabulary, length=recipe.text_length)
        self.text = CLIPTextModelWithProjection(text_config(recipe, self.tokenizer, self.targets.shape[-1]))
        self.log_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))

    def named_grounds(self, count: int) -> list[list[str]]:
        """The other grounds on which the judge sees the drawings: a word for each drawing."""
        rng = random.Random(self.recipe.seed)
        return [[sample_ground(rng) for _ in range(len(self.seen))] for _ in range(count)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text encoder and the logits' scale."""
        return [{"params": list(self.parameters()), "lr": self.recipe.learning_rate}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """A drawing of each of the batch's concepts against its caption; the batch's pictures go unused."""
        rng = random.Random(f"{self.recipe.seed}/{batch.seed}")
        rows = [rng.choice(self.drawings_of[concept]) for concept in batch.concepts.tolist()]
        sides = [rng.randrange(len(self.grounds)) for _ in rows]
        captions = [
            caption(self.seen.drawings[row], self.grounds[side][row], rng)
            for side, row in zip(sides, rows, strict=True)
        ]
        images = self.targets[sides, rows].to(self.log_scale.device)
        concepts = batch.concepts.to(self.log_scale.device)
        return {"loss": contrast(images, self.embed(captions), self.log_scale, concepts)}

    def embed(self, captions: list[str]) -> Float[Tensor, "batch embedding"]:
        """Captions → projected embeddings, not normalised."""
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        device = self.log_scale.device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        return self.text(input_ids=ids, attention_mask=mask).text_embeds

    def held_out(self) -> dict[str, float]:
        """Share of unseen drawings, on white, whose name (or `PROMPT` with it) is first, or in five."""
        names = sorted({drawing.concept for drawing in self.unseen.drawings})
        figures: dict[str, float] = {}
        for kind, captions in (("name", names), ("prompt", [PROMPT.format(name) for name in names])):
            ranks = name_ranks(self.unseen_targets, self.embed(captions).cpu(), self.unseen.concepts)
            figures |= {f"{kind}@{k}": float((ranks < k).float().mean()) for k in (1, 5)}
        return figures | {"name chance@1": 1 / len(names), "name chance@5": min(5 / len(names), 1.0)}

    def export(self, output: Path) -> None:
        """Text encoder and tokenizer, in transformers' folder format, under the judge's: `judge/text`."""
        self.text.save_pretrained(output / "judge" / "text")
        self.tokenizer.save_pretrained(output / "judge" / "text")


def load_locked(folder: Path) -> ConvNextForImageClassification:
    """The judge, as `JudgeObjective` exports it, frozen.

    Raises:
        ConfigError: it is not there
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"there is no judge in {folder}: train the stage judge first, or set weights")
    return ConvNextForImageClassification.from_pretrained(folder).eval().requires_grad_(False)


@torch.no_grad()
def features(
    judge: ConvNextForImageClassification, pictures: EmojiPictures, grounds: list[str]
) -> Float[Tensor, "drawings dim"]:
    """The judge's features of all drawings, each on its ground, of length one, on the CPU."""
    rng, found = random.Random(0), []
    colours = torch.cat([ground_colour(ground, rng) for ground in grounds])
    for rows in track(chunks(list(range(len(pictures)))), description="the judge looks"):
        found.append(judge(pictures.on_ground(rows, colours[rows])).logits)
    return F.normalize(torch.cat(found), dim=-1)


def text_config(recipe: JudgeTextRecipe, tokenizer: CLIPTokenizer, dim: int) -> CLIPTextConfig:
    """The text encoder's shape; its features are `dim` wide."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=max(1, recipe.width // 32),
        max_position_embeddings=recipe.text_length,
        projection_dim=dim,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )


def caption(drawing: Drawing, ground: str, rng: random.Random) -> str:
    """A caption of a drawing: its name, keywords or both; perhaps the style; the ground half of the time."""
    keywords, form = list(drawing.keywords), rng.random()
    rng.shuffle(keywords)
    words = [drawing.concept]
    if keywords and form < 0.25:
        words = keywords[: rng.randint(1, 4)]
    elif form < 0.5:
        words += keywords[: rng.randint(1, 3)]
    parts = ending(drawing.style, ground, rng) if rng.random() < 0.5 else []
    return ", ".join([*words, *parts])


def name_ranks(
    images: Float[Tensor, "pictures dim"], names: Float[Tensor, "names dim"], right: Int[Tensor, " pictures"]
) -> Int[Tensor, " pictures"]:
    """The rank of each picture's own name among all names, 0 for the first; ties count against."""
    similarity = images @ F.normalize(names, dim=-1).T
    return (similarity >= similarity.gather(1, right[:, None])).sum(dim=1) - 1
