"""Batches of captioned emoji pictures, drawn together on coloured grounds.

A batch is a pure function of (seed, step): nothing to save, nothing to restore, the same after a restart.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from imprompt.training.captions import GROUNDS, PLACES, caption_none, caption_one, caption_two, sample_ground
from imprompt.training.emoji import Drawing, load_data
from imprompt.training.recipe import Mixture

NAMED_GROUND_SHARE = 0.6
"""How many captions name the ground."""

GROUND_JITTER = 14
"""Grounds differ from their colour's RGB by up to this much in each channel (of 255)."""


@dataclass(frozen=True)
class Batch:
    """What a model is shown: pictures, their captions, and pictures to prompt with (not always the same).

    `pixels` and `reference_pixels` have shape (batch, 3, size, size), range [-1, 1]; `concepts` numbers what
    each picture shows, so that two pictures of one concept are not held against each other. What else is
    random of the step comes from `generator`, seeded by `seed`.
    """

    pixels: Float[Tensor, "batch 3 size size"]
    reference_pixels: Float[Tensor, "batch 3 size size"]
    captions: list[str]
    concepts: Tensor
    seed: int = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """The step's randomness, from its beginning."""
        return torch.Generator(device).manual_seed(self.seed)


class EmojiPictures:
    """One side of the split, and how its pictures are put on grounds."""

    def __init__(self, folder: Path, *, held_out: bool = False) -> None:
        pictures, drawings = load_data(folder)
        rows = [i for i, drawing in enumerate(drawings) if drawing.held_out == held_out]
        self.drawings: list[Drawing] = [drawings[i] for i in rows]
        self.pictures: UInt8[Tensor, "drawings size size 4"] = torch.from_numpy(pictures[rows])
        names = sorted({drawing.concept for drawing in self.drawings})
        self.concepts = torch.tensor([names.index(drawing.concept) for drawing in self.drawings])

    def __len__(self) -> int:
        return len(self.drawings)

    def on_ground(
        self, rows: Sequence[int], grounds: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pictures composited on plain grounds; `grounds` in [0, 255], result in [-1, 1]."""
        picture = self.pictures[torch.tensor(rows)].permute(0, 3, 1, 2).float()
        alpha = picture[:, 3:] / 255
        return (alpha * picture[:, :3] + (1 - alpha) * grounds[:, :, None, None]) / 127.5 - 1

    def plain(self, rows: Sequence[int]) -> Float[Tensor, "batch 3 size size"]:
        """Pictures on white, as a person would hand them in."""
        return self.on_ground(rows, torch.full((len(rows), 3), 255.0))


@dataclass(frozen=True)
class Scene:
    """A drawing, its ground (RGB in [0, 255]), its caption; perhaps in a corner, perhaps with a neighbour."""

    row: int
    colour: Float[Tensor, "1 3"]
    reference_colour: Float[Tensor, "1 3"]
    caption: str
    place: str = ""
    neighbour: int | None = None


class EmojiBatches:
    """Endless batches in a shuffled order that changes every epoch."""

    def __init__(
        self, pictures: EmojiPictures, batch_size: int, *, seed: int, mixture: Mixture | None = None
    ) -> None:
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed
        self.mixture = mixture or Mixture()

    def __getitem__(self, step: int) -> Batch:
        """The batch of that step, whatever was asked for before."""
        rng = random.Random(f"{self.seed}/{step}")
        rows = self.rows(step)
        scenes = [self.scene(row, rng) for row in rows]
        pixels = self.pictures.on_ground(rows, torch.cat([scene.colour for scene in scenes]))
        references = pixels
        if self.mixture.changed_ground:
            references = self.pictures.on_ground(rows, torch.cat([s.reference_colour for s in scenes]))
        for index, scene in enumerate(scenes):
            if scene.place or scene.neighbour is not None:
                pixels[index] = references[index] = self.compose(scene)
        captions = [scene.caption for scene in scenes]
        concepts = self.pictures.concepts[torch.tensor(rows)]
        return Batch(pixels, references, captions, concepts, self.seed * 1_000_003 + step)

    def rows(self, step: int) -> list[int]:
        """Which drawings the step shows: consecutive places in the epochs' permutations, laid end to end."""
        count = len(self.pictures)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: self.order(epoch) for epoch in {place // count for place in places}}
        return [int(orders[place // count][place % count]) for place in places]

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of all drawings in one epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures))

    def scene(self, row: int, rng: random.Random) -> Scene:
        """What to draw around one drawing, and what to say of it."""
        mixture, drawings = self.mixture, self.pictures.drawings
        ground = sample_ground(rng)
        named = ground if rng.random() < NAMED_GROUND_SHARE else None
        colour, draw = ground_colour(ground, rng), rng.random()
        if draw < mixture.placed:
            place = rng.choice(PLACES)
            return Scene(
                row, colour, colour, caption_one(drawings[row], named, rng, place=place), place=place
            )
        if draw < mixture.placed + mixture.paired:
            other = rng.randrange(len(self.pictures))
            caption = caption_two((drawings[row], drawings[other]), named, rng)
            return Scene(row, colour, colour, caption, neighbour=other)
        is_changed = named is not None and rng.random() < mixture.changed_ground
        reference_colour = ground_colour(sample_ground(rng), rng) if is_changed else colour
        is_nameless = mixture.nameless > 0 and rng.random() < mixture.nameless
        caption = (caption_none if is_nameless else caption_one)(drawings[row], named, rng)
        return Scene(row, colour, reference_colour, caption)

    def compose(self, scene: Scene) -> Float[Tensor, "3 size size"]:
        """The picture of a scene that is more than one whole drawing."""
        if scene.neighbour is not None:
            return self.side_by_side(scene.row, scene.neighbour, scene.colour)
        return self.shrink(scene.row, scene.colour, scene.place)

    def shrink(self, row: int, colour: Tensor, place: str) -> Float[Tensor, "3 size size"]:
        """A drawing at 5/8 of its size in one corner."""
        pixels = self.pictures.on_ground([row], colour)
        size = pixels.shape[-1]
        small = F.interpolate(pixels, size=size * 5 // 8, mode="area")[0]
        canvas = (colour[0] / 127.5 - 1)[:, None, None].repeat(1, size, size)
        top = 0 if place.startswith("top") else size - small.shape[-1]
        left = 0 if place.endswith("left") else size - small.shape[-1]
        canvas[:, top : top + small.shape[-1], left : left + small.shape[-1]] = small
        return canvas

    def side_by_side(self, left: int, right: int, colour: Tensor) -> Float[Tensor, "3 size size"]:
        """Two drawings at half size, level, on one ground."""
        pixels = self.pictures.on_ground([left, right], colour.repeat(2, 1))
        size = pixels.shape[-1]
        halves = F.interpolate(pixels, size=size // 2, mode="area")
        canvas = (colour[0] / 127.5 - 1)[:, None, None].repeat(1, size, size)
        canvas[:, size // 4 : size // 4 + size // 2] = torch.cat([halves[0], halves[1]], dim=-1)
        return canvas


def ground_colour(ground: str, rng: random.Random) -> Float[Tensor, "1 3"]:
    """A named ground's RGB with a little jitter, in [0, 255]; white stays white."""
    if ground == "white":
        return torch.full((1, 3), 255.0)
    jittered = [channel + rng.uniform(-GROUND_JITTER, GROUND_JITTER) for channel in GROUNDS[ground]]
    return torch.tensor([jittered]).clamp(0, 255)
