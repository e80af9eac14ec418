"""stub."""

from dataclasses import dataclass
from collections.abc import Mapping
from typing import Literal
from torch import Tensor
from imprompt.errors import *

Combine = Literal["concat", "average", "add", "subtract", "normalised average", "interpolate"]


@dataclass(frozen=True, eq=False)
class ImageEmbeddings:
    inputs: Mapping
    blank: Mapping
    metadata: Mapping

    def check_fits(self, takes):
        for n, w in takes.items():
            if n not in self.inputs or self.inputs[n].shape[-1] != w:
                raise AdapterMismatch(f"{n} must be {w} wide")


def load_embeddings(p): ...
def combined(x, how, weights=None):
    return x
