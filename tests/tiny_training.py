"""A training run in seconds: a tiny base and image encoder in folders, a few pictures, a configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from imprompt.training.config import TrainingConfig, parse_config

PICTURES = 12


def write_base(folder: Path, pipe: Any = None) -> Path:
    """A tiny base in diffusers' format, and its image encoder beside it."""
    (tiny.sd_pipeline() if pipe is None else pipe).save_pretrained(folder / "base")
    tiny.vision_model(seed=3).save_pretrained(folder / "encoder")
    return folder


def write_pictures(folder: Path, count: int = PICTURES, **size: int) -> Path:
    """Pictures with captions, as a folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        tiny.picture(seed=number, **size).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"thing {number}")
    return folder


def values(models: Path, pictures: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A configuration; `changes` are dotted names with `__` for the dot."""
    made: dict[str, Any] = {
        "preset": "sd15",
        "output": str(output),
        "base": {"model": str(models / "base"), "image_encoder": str(models / "encoder")},
        "adapter": {"tokens": 2},
        "data": {"source": str(pictures), "size": 16, "held_out": 0.3},
        "cache": {"folder": str(output.parent / "cache"), "shard_size": 5, "batch_size": 2},
        "training": {
            "steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "ema_decay": 0.9,
            "log_every": 1,
            "save_every": 2,
            "sample_every": 1000,
            "check_every": 1000,
        },
        "watch": {"references": 1, "sampling_steps": 1, "scales": [1.0]},
    }
    for name, value in changes.items():
        *groups, last = name.split("__")
        place = made
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return made


def config(models: Path, pictures: Path, output: Path, **changes: Any) -> TrainingConfig:
    return parse_config(values(models, pictures, output, **changes), "test")


Train = Callable[..., Path]
