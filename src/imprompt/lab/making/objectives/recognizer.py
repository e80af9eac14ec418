"""The recognizer's loss: a view of a person finds another view of it among those of other people.

    loss = CE(s (cos(θ_ij + m [i = j])), i)         θ_ij: the angle between view 1 of i and view 2 of j

This is ArcFace (Deng et al. 2019, arXiv 1801.07698) with the other people of the batch in place of class
centers, so that no number of people is too large: the margin m is added to the angle of the right pair.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imprompt.evaluation.judges.characters import build_network
from imprompt.inputs.recognizer import CharacterRecognizer
from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.dataset import PEOPLE, Drawings
from imprompt.lab.making.objectives.encoder import shake
from imprompt.lab.making.objectives.judge import soften
from imprompt.lab.making.objectives.stage import StageObjective
from imprompt.lab.making.recipe import RecognizerRecipe
from imprompt.lab.making.views import VIEWS
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.sheets import picture_grid

GALLERY = 200
"""The number of people among whom one is searched."""


class RecognizerObjective(StageObjective):
    """A convolutional network that maps all views of a person to one embedding."""

    def __init__(self, recipe: RecognizerRecipe, output: Path) -> None:
        super().__init__(recipe)
        self.views = Drawings(resolve_in_cache(recipe.data) / PEOPLE, "training")
        self.held_out_views = Drawings(resolve_in_cache(recipe.data) / PEOPLE, "combinations")
        network = build_network(recipe.widths, recipe.depths, recipe.patch_size, self.views.pictures.shape[1])
        self.recognizer = CharacterRecognizer(network, recipe.embedding_dim)

    @property
    def count(self) -> int:
        """The number of people, which are the rows of a batch."""
        return len(self.views) // VIEWS

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the loss of two views of each person, slightly moved and blurred."""
        generator = batch.make_generator(self.device)
        people = torch.tensor(batch.rows)
        order = torch.rand(len(people), VIEWS, generator=batch.make_generator()).argsort(dim=1)
        rows = torch.cat([people * VIEWS + order[:, place] for place in (0, 1)])
        pixels = to_pixels(self.views.pictures[rows.numpy()]).to(self.device)
        embeddings = self.recognizer(soften(shake(pixels, generator), generator))
        first, second = embeddings.chunk(2)
        loss = contrast_with_margin(first, second, self.recipe.scale, self.recipe.margin)
        return {"loss": loss}

    def held_out(self) -> dict[str, float]:
        """Return how often a person is found by a view in another style, among people never seen."""
        first, second = (self.embed_views(place) for place in (0, 1))
        similarities = first @ second.T
        found = similarities.argmax(dim=1) == torch.arange(len(first), device=first.device)
        own = similarities.diagonal().mean()
        return {f"found among {len(first)}": found.float().mean().item(), "similarity of views": own.item()}

    def embed_views(self, place: int) -> Float[Tensor, "people embedding"]:
        """Return the embeddings of one view of each held-out person."""
        rows = list(range(place, min(len(self.held_out_views), GALLERY * VIEWS), VIEWS))
        pieces = [to_pixels(self.held_out_views.pictures[rows[i : i + 50]]) for i in range(0, len(rows), 50)]
        return torch.cat([self.recognizer(piece.to(self.device)) for piece in pieces])

    def draw_samples(self) -> Image.Image:
        """Draw people never seen, and whom each of them is most like, in another style."""
        first, second = (self.embed_views(place) for place in (0, 1))
        nearest = (first @ second.T).argmax(dim=1).tolist()[:12]
        pictures = self.held_out_views.pictures
        rows = [[place * VIEWS for place in range(12)], [place * VIEWS + 1 for place in nearest]]
        return picture_grid([list(to_pixels(pictures[some])) for some in rows])

    def export(self, output: Path) -> None:
        """Write the recognizer into its own folder."""
        (output / "recognizer").mkdir(parents=True, exist_ok=True)
        self.recognizer.save(output / "recognizer")


def contrast_with_margin(
    first: Float[Tensor, "people dim"],
    second: Float[Tensor, "people dim"],
    scale: float | int,
    margin: float | int,
) -> Float[Tensor, ""]:
    """Return how badly each view finds its partner, with a margin on the angle, in both directions.

    It is computed in float32 inside autocast too: a cosine of 1 has no finite derivative of its angle.
    """
    with torch.autocast(first.device.type, enabled=False):
        cosines = (first.float() @ second.float().T).clamp(-1 + 1e-6, 1 - 1e-6)
    partners = torch.eye(len(first), device=first.device, dtype=torch.bool)
    logits = scale * torch.where(partners, (cosines.acos() + margin).cos(), cosines)
    places = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2
