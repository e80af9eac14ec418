"""Are pictures copies of what was trained on? Only a machine with the training drawings can say.

    ratio = distance to the nearest training drawing / to the second nearest of that icon set

Within one icon set, because the same concept is drawn almost alike in some sets, which would hide its copies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import COPY_RATIO, Interval, bootstrap_interval, copy_ratios
from imprompt.evaluation.pictures import light_copy, load_training, on_white
from imprompt.progress import counted
from imprompt.settings import in_cache

DATA = "emoji-64"
"""The training drawings' folder in the cache, as `imprompt mini build-data` names it."""

CONTROLS = 60
"""Light copies of training drawings, to see that copies are found."""


class Seen:
    """The training drawings, as the judge sees them.

    Attributes:
        features: the judge's, icon set by icon set
        controls: light copies of some drawings, evenly chosen
        count: how many drawings there are
    """

    def __init__(self, judge: Judge, sets: Mapping[str, Any]) -> None:
        self.features, every = {}, []
        with counted("training drawings", sum(map(len, sets.values()))) as advance:
            for name, cuts in sets.items():
                pictures = [on_white(cut) for cut in cuts]
                self.features[name] = judge.features(pictures)
                every += pictures
                advance(len(pictures))
        self.count = len(every)
        self.controls = [light_copy(picture) for picture in every[:: max(len(every) // CONTROLS, 1)]]


def load_seen(judge: Judge) -> Seen | None:
    """The training drawings, if they are on this machine."""
    sets = load_training(in_cache(DATA))
    return None if sets is None else Seen(judge, sets)


def copied(
    features: Float[Tensor, "pictures dim"], seen: Mapping[str, Float[Tensor, "drawings dim"]] | None
) -> list[float | None]:
    """Each picture's ratio in the icon set that holds its nearest drawing; nothing without drawings."""
    if seen is None:
        return [None] * len(features)
    nearest = torch.stack([(features @ one.T).amax(dim=1) for one in seen.values()])
    ratios = torch.stack([copy_ratios(features, one) for one in seen.values()])
    return list(ratios.gather(0, nearest.argmax(dim=0)[None])[0].tolist())


def copy_figures(
    judge: Judge, seen: Seen | None, generated: Interval | None, references: Sequence[Image.Image]
) -> dict[str, Any] | None:
    """The share of copies among generated pictures, references and light copies; None without drawings.

    References are held out, so theirs is the share that chance makes; light copies are copies.

    Args:
        judge: who scores
        seen: the training drawings
        generated: the share among the generated pictures
        references: pictures
    """
    if seen is None or generated is None:
        return None
    shares = {
        "generated": generated,
        "held-out drawings": _share(copied(judge.features(list(references)), seen.features)),
        "light copies of training drawings": _share(copied(judge.features(seen.controls), seen.features)),
    }
    return {"ratio": COPY_RATIO, "training drawings": seen.count, "shares": shares}


def _share(ratios: Sequence[float | None]) -> Interval:
    return bootstrap_interval(np.array([ratio is not None and ratio < COPY_RATIO for ratio in ratios]))
