"""The recognizer's loss: a view of a person finds another view of it among those of other people.

    loss = CE(s (cos(θ_ij + m [i = j])), i)         θ_ij: the angle between view 1 of i and view 2 of j

This is ArcFace (Deng et al. 2019, arXiv 1801.07698) with the other people of the batch in place of class
centers, so that no number of people is too large: the margin m is added to the angle of the right pair.
"""

from itertools import permutations
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
from imprompt.inputs.recognizer import CharacterRecognizer
from imprompt.lab.making.batches import DrawingBatch, to_pixels
from imprompt.lab.making.dataset import PEOPLE, Drawings
from imprompt.lab.making.objectives.stage import StageObjective
from imprompt.lab.making.recipe import RecognizerRecipe
from imprompt.lab.making.views import VIEWS
from imprompt.mini import find_part
from imprompt.runtime.devices import choose_device
from imprompt.runtime.files import resolve_in_cache
from imprompt.training.sheets import picture_grid

SHOWN = 12
"""The number of people in the sample grid."""

ENCODED_AT_ONCE = 100
"""The number of pictures that the image encoder reads at once."""


class RecognizerObjective(StageObjective):
    """A network that maps the image embeddings of all views of a person to one embedding.

    The views' image embeddings are computed once, by the encoder of the model's folder, or by the embedded
    one if the folder has none.
    """

    autocasts = False

    def __init__(self, recipe: RecognizerRecipe, output: Path) -> None:
        super().__init__(recipe)
        folder = resolve_in_cache(recipe.data) / PEOPLE
        views, self.held_out_views = Drawings(folder, "training"), Drawings(folder, "combinations")
        encoder = load_image_encoder(find_part(output, "image_encoder")).to(choose_device())
        self.views, self.held_out_embeddings = (
            encode_people(encoder, one) for one in (views, self.held_out_views)
        )
        self.recognizer = CharacterRecognizer(
            encoder.embedding_dim, recipe.hidden_dim, recipe.embedding_dim, recipe.dropout
        )
        self.recognizer.deviation, self.recognizer.mean = torch.std_mean(self.views, dim=(0, 1))

    @property
    def count(self) -> int:
        """The number of people, which are the rows of a batch."""
        return len(self.views)

    def loss(self, batch: DrawingBatch) -> dict[str, Tensor]:
        """Return the loss of two views of each person."""
        people = torch.tensor(batch.rows)
        order = torch.rand(len(people), VIEWS, generator=batch.make_generator()).argsort(dim=1)
        first, second = (
            self.recognizer(self.views[people, order[:, place]].to(self.device)) for place in (0, 1)
        )
        return {"loss": contrast_with_margin(first, second, self.recipe.scale, self.recipe.margin)}

    @torch.no_grad()
    def measure_held_out(self) -> dict[str, float]:
        """Return how often a person is found by a view in another style, among people never seen."""
        views = self.recognizer(self.held_out_embeddings.to(self.device))
        pairs = [(views[:, one], views[:, other]) for one, other in permutations(range(VIEWS), 2)]
        found = [(one @ other.T).argmax(dim=1).cpu() == torch.arange(len(one)) for one, other in pairs]
        own = [(one * other).sum(dim=1).mean() for one, other in pairs]
        return {
            f"found among {len(views)}": torch.stack(found).float().mean().item(),
            "similarity of views": torch.stack(own).mean().item(),
        }

    @torch.no_grad()
    def draw_samples(self) -> Image.Image:
        """Draw people never seen, and whom each of them is most like, in another style."""
        views = self.recognizer(self.held_out_embeddings.to(self.device))
        nearest = (views[:, 0] @ views[:, 1].T).argmax(dim=1).tolist()[:SHOWN]
        pictures = self.held_out_views.pictures
        rows = [[place * VIEWS for place in range(SHOWN)], [place * VIEWS + 1 for place in nearest]]
        return picture_grid([list(to_pixels(pictures[some])) for some in rows])

    def export(self, output: Path) -> None:
        """Write the recognizer into its own folder."""
        (output / "recognizer").mkdir(parents=True, exist_ok=True)
        self.recognizer.save(output / "recognizer")


def encode_people(encoder: ImageEncoder, views: Drawings) -> Float[Tensor, "people views embedding"]:
    """Return the image embeddings of all views of all people."""
    embeddings = torch.empty(len(views), encoder.embedding_dim)
    for start in track(range(0, len(views), ENCODED_AT_ONCE), description="image embeddings"):
        rows = slice(start, start + ENCODED_AT_ONCE)
        pictures = [Image.fromarray(picture) for picture in views.pictures[rows]]
        embeddings[rows] = encoder.encode(encoder.pixels(pictures)).float().cpu()
    return embeddings.unflatten(0, (-1, VIEWS))


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
