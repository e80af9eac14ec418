"""From the folder of a trained model to the one that ships: the parts a user needs, in float16."""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.errors import ConfigError

PARTS = ("base", "adapter", "image_encoder", "judge")
"""What ships; the rest (state, logs, the pair's text side) stays where it was made."""

EXTRAS = ("styles", "control")
"""What ships too if it has been trained: without it, what shipped before stays."""


def ship(model: Path, weights: Path) -> int:
    """Copy a trained model's parts to `weights`, tensors halved; return the bytes written.

    Raises:
        ConfigError: a part has not been trained yet, or holds a number that float16 cannot
    """
    missing = [part for part in PARTS if not (model / part).is_dir()]
    if missing:
        raise ConfigError(f"{model} has no {', '.join(missing)} yet: train the other stages first")
    written = 0
    for part in (*PARTS, *(extra for extra in EXTRAS if (model / extra).is_dir())):
        shutil.rmtree(weights / part, ignore_errors=True)
        for source in sorted(path for path in (model / part).rglob("*") if path.is_file()):
            target = weights / source.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_halved(source, target)
            written += target.stat().st_size
    return written


def copy_halved(source: Path, target: Path) -> None:
    """Copy one file; a safetensors file's float tensors become float16, its metadata stays."""
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    with safe_open(source, "pt") as file:
        tensors = {name: halved(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, target, file.metadata())


def halved(name: str, tensor: Tensor) -> Tensor:
    """A float tensor as float16; any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise ConfigError(f"{name} holds numbers that float16 cannot")
    return half
