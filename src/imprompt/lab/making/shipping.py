"""Copy the parts that a user needs from a trained model's folder to the shipped weights, in float16."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from imprompt.checkpoint import EMBEDDED, describe
from imprompt.checkpoint.files import write_tensors
from imprompt.errors import ConfigError

PARTS = ("base", "image_encoder", "judge")
"""The parts that ship; the rest (state, logs, the pair's text side) stays where it was made."""

EXTRAS = ("recognizer", "styles", "control")
"""Parts that ship if they have been trained; otherwise the shipped ones stay."""


def ship(model: Path, weights: Path, *, adapter: Path | None = None) -> int:
    """Copy a trained model's parts to `weights`, tensors in float16; return the bytes written.

    Args:
        model: folder of the model, as its stages wrote it
        weights: target of the parts
        adapter: a file that `imprompt train` wrote for this base; it replaces the one of its variant. Without
            it, all shipped adapters stay

    Raises:
        ConfigError: a part has not been trained yet, or holds a number that float16 cannot; there is no such
            adapter, or its variant does not ship
        CheckpointError: the adapter is damaged
    """
    missing = [part for part in PARTS if not (model / part).is_dir()]
    if missing:
        raise ConfigError(f"{model} has no {', '.join(missing)} yet: train the other stages first")
    place = None if adapter is None else place_of(adapter)  # before anything is replaced
    written = 0
    for part in (*PARTS, *(extra for extra in EXTRAS if (model / extra).is_dir())):
        shutil.rmtree(weights / part, ignore_errors=True)
        for source in sorted(path for path in (model / part).rglob("*") if path.is_file()):
            written += copy_in_half_precision(source, weights / source.relative_to(model))
    return written + (copy_in_half_precision(adapter, weights / place) if adapter and place else 0)


def place_of(adapter: Path) -> Path:
    """Return the place of an adapter among the weights.

    Raises:
        ConfigError: there is no such adapter, or its variant does not ship
        CheckpointError: the file is damaged
    """
    if not adapter.is_file():
        raise ConfigError(f"there is no adapter {adapter}: train it with recipes/mini-adapter.toml")
    variant = str(describe(adapter).variant)
    files = {one.variant: one.file for one in EMBEDDED.values()}
    if variant not in files:
        raise ConfigError(f"{adapter} is a {variant} adapter; the embedded model ships {' and '.join(files)}")
    return Path("adapter", files[variant])


def copy_in_half_precision(source: Path, target: Path) -> int:
    """Copy one file: float tensors become float16, and a configuration loses the folder that it came from.

    Returns:
        the copy's size in bytes
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == "config.json":
        known = json.loads(source.read_text(encoding="utf-8"))
        known.pop("_name_or_path", None)  # diffusers stores the folder that a part was loaded from
        target.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    elif source.suffix != ".safetensors":
        shutil.copyfile(source, target)
    else:
        with safe_open(source, "pt") as file:
            tensors = {name: to_half_precision(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            write_tensors(tensors, target, file.metadata() or {})  # in order: equal weights are equal files
    return target.stat().st_size


def to_half_precision(name: str, tensor: Tensor) -> Tensor:
    """Return a float tensor as float16, and any other tensor as it is."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise ConfigError(f"{name} holds numbers that float16 cannot")
    return half
