"""A judge's features of images, stored in parts, so that a scoring that was killed can be resumed.

The name of a part follows from the judge's weights, the view and the bytes of the images in it, so no part is
ever outdated. Parts are fixed, so features do not depend on where a scoring stopped.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from imprompt.evaluation.bounds import make_light_copy
from imprompt.evaluation.judges import Judge
from imprompt.inputs.crop import encoder_view
from imprompt.inputs.image import load_image
from imprompt.runtime.output import write_atomically
from imprompt.runtime.threads import compute_on_one_thread

PART = 64
"""The number of images in a part."""

View = Literal["drawn", "square", "whole", "light copy"]
"""How an image is prepared for a judge.

"drawn" is the image as it is. Of a reference, "square" is the middle square, which its image encoder sees,
"whole" is all of it squeezed to a square, and "light copy" a light copy of the square.
"""


def prepare_view(path: Path, view: View) -> Image.Image:
    """Load an image as a judge sees it."""
    picture = load_image(path)
    side = min(picture.size)
    if view == "drawn":
        return picture
    if view == "whole":
        return encoder_view(picture, side, "stretch")
    square = encoder_view(picture, side)
    return square if view == "square" else make_light_copy(square)


def compute_features(
    judge: Judge,
    paths: Sequence[Path],
    view: View,
    folder: Path,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Float[Tensor, "pictures dim"]:
    """Compute features of length one; those that are stored in `folder` are read.

    Raises:
        ImageError: an image cannot be read
        OutputError: a part cannot be written
    """
    parts = []
    for start in range(0, len(paths), PART):
        some = paths[start : start + PART]
        parts.append(_load_part(judge, some, view, folder))
        advance(len(some))
    return torch.cat(parts)


def _load_part(
    judge: Judge, paths: Sequence[Path], view: View, folder: Path
) -> Float[Tensor, "pictures dim"]:
    file = folder / f"{_part_name(judge, paths, view)}.safetensors"
    if file.exists():
        return load(file.read_bytes())["features"]
    with compute_on_one_thread(str(judge.device)):
        features = judge.features([prepare_view(path, view) for path in paths])
    with write_atomically(file) as part:
        part.write_bytes(save({"features": features.contiguous()}))
    return features


def _part_name(judge: Judge, paths: Sequence[Path], view: View) -> str:
    digest = hashlib.sha256(f"{judge.name} {judge.fingerprint} {view}".encode())
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]
