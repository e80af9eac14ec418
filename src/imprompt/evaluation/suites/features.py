"""What judges see of pictures, kept on disk in parts: a scoring that was killed goes on where it was.

A part is named after the judge's weights, the view and the bytes of the pictures in it, so that none is ever
stale. Parts are fixed, so that features do not depend on where a scoring stopped.
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

from imprompt.evaluation.bounds import light_copy
from imprompt.evaluation.judges import Judge
from imprompt.evaluation.suites.drawing import one_thread
from imprompt.inputs.crop import encoder_view
from imprompt.inputs.image import load_image
from imprompt.runtime.output import write_atomically

PART = 64
"""Pictures in a part."""

View = Literal["drawn", "square", "whole", "light copy"]
"""How a file is shown to a judge: "drawn" as it is; of a reference the middle "square", which its image
encoder saw, the "whole" of it squeezed to a square, or a "light copy" of the square."""


def seen(path: Path, view: View) -> Image.Image:
    """A picture as a judge is to see it."""
    picture = load_image(path)
    side = min(picture.size)
    if view == "drawn":
        return picture
    if view == "whole":
        return encoder_view(picture, side, "stretch")
    square = encoder_view(picture, side)
    return square if view == "square" else light_copy(square)


def features_of(
    judge: Judge,
    paths: Sequence[Path],
    view: View,
    folder: Path,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Float[Tensor, "pictures dim"]:
    """Features of pictures, of length one; those that are in `folder` are read from there.

    Raises:
        ImageError: a picture cannot be read
        OutputError: a part cannot be written
    """
    parts = []
    for start in range(0, len(paths), PART):
        some = paths[start : start + PART]
        parts.append(_part(judge, some, view, folder))
        advance(len(some))
    return torch.cat(parts)


def _part(judge: Judge, paths: Sequence[Path], view: View, folder: Path) -> Float[Tensor, "pictures dim"]:
    file = folder / f"{_name(judge, paths, view)}.safetensors"
    if file.exists():
        return load(file.read_bytes())["features"]
    with one_thread(str(judge.device)):
        features = judge.features([seen(path, view) for path in paths])
    with write_atomically(file) as part:
        part.write_bytes(save({"features": features.contiguous()}))
    return features


def _name(judge: Judge, paths: Sequence[Path], view: View) -> str:
    digest = hashlib.sha256(f"{judge.name} {judge.fingerprint} {view}".encode())
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]
