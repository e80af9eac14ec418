"""Are pictures copies of drawings that were trained on? Only a machine with the training drawings can say.

    ratio = distance to the nearest training drawing / to the second nearest        a copy: below 1/3

Distances are between the judge's identity embeddings, in which a drawing that was moved, blurred or stained
is near itself. How many light copies are found says how far to trust the rest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imprompt.evaluation.bounds import light_copy
from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.evaluation.metrics import copy_ratios, is_copy
from imprompt.lab.making.batches import to_pixels
from imprompt.lab.suite.scoring import mean_of, read_pictures
from imprompt.report import Interval
from imprompt.runtime.settings import resolve_in_cache

DATA = "characters-128"
"""The drawings' folder in the cache, as `imprompt mini build-data` names it."""

BATCH = 250
"""Drawings that the judge sees at once."""

MOST = 10_000
"""How many training drawings are looked through."""

LIGHT_COPIES = 60
"""Light copies of training drawings, to see that copies are found."""


@torch.no_grad()
def count_copies(
    judge: CharacterJudge,
    painted: Sequence[Image.Image],
    unseen: Sequence[Image.Image],
    folder: Path | None = None,
) -> Mapping[str, Interval] | None:
    """The share of copies among pictures, unseen drawings (what chance makes) and light copies (all).

    Args:
        judge: whose embeddings are compared
        painted: by the model
        unseen: drawings that no model has seen
        folder: of the training drawings; by default where `imprompt mini build-data` puts them

    Returns:
        None if the training drawings are not on this machine
    """
    path = (resolve_in_cache(DATA) if folder is None else folder) / "training" / "pictures.npy"
    if not path.is_file():
        return None
    drawings = np.load(path, mmap_mode="r")[:MOST]
    seen = torch.cat(
        [judge.embed(to_pixels(drawings[i : i + BATCH])) for i in range(0, len(drawings), BATCH)]
    )
    copied = [Image.fromarray(one) for one in drawings[:: max(1, len(drawings) // LIGHT_COPIES)]]
    several = {
        "pictures": painted,
        "unseen drawings": unseen,
        "light copies of training drawings": [light_copy(one) for one in copied],
    }
    return {
        name: mean_of(is_copy(copy_ratios(read_pictures(judge, pictures).embeddings, seen)).tolist())
        for name, pictures in several.items()
    }
