"""Trainings of a few steps on tiny bases: what the files that test the trainer share."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

import tiny
import tiny_bases
import tiny_training
from imprompt.inputs.encoder import ImageEncoder
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.loop import Run

CONTEXT = 64
"""Width of the text, and so of perceivers, whose heads diffusers takes to be 64 wide."""

# The first step of a LoRA changes its up-matrices only, which begin as zero: till then down has no gradient.
STEPS, FEATURES = 2, 5
SHAPES = ((37, 31), (31, 37), (40, 24), (24, 40), (36, 36))


@functools.cache
def pipeline(kind: str) -> Any:
    """A tiny base whose text is `CONTEXT` wide."""
    pipe: Any = tiny.sd_pipeline() if kind == "SD" else tiny.xl_pipeline()
    unet = tiny_bases.unet_of(dict(pipe.unet.config) | {"cross_attention_dim": CONTEXT})
    width = CONTEXT if kind == "SD" else CONTEXT - tiny.XL_CONTEXT_2
    pipe.register_modules(unet=unet, text_encoder=tiny.text_model(seed=1, width=width))
    return pipe


def build_base(kind: str = "SD", dtype: torch.dtype = torch.float32, **schedule: Any) -> FrozenBase:
    """A base of one's own; `schedule` changes its scheduler."""
    pipe = copy.deepcopy(pipeline(kind))
    if schedule:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **schedule)
    return FrozenBase(pipe, ImageEncoder(tiny.vision_model(seed=3)), dtype=dtype)


def write_home(folder: Path) -> Path:
    """Data of two kinds, in the folder where cache and runs will be."""
    write_pictures(folder / "plain")
    for index, place in enumerate(write_pictures(folder / "rich")):
        tiny.picture(seed=100 + index).save(place.with_suffix(".reference.1.png"))
        tiny.picture(seed=200 + index).save(place.with_suffix(".reference.2.png"))
        if index % 2:
            with Image.open(place) as picture:
                half = Image.new("L", picture.size, 0)
            half.paste(255, (0, 0, half.width // 2, half.height))
            half.save(place.with_suffix(".mask.png"))
    return folder


def write_pictures(folder: Path, count: int = 10) -> list[Path]:
    """Pictures of several shapes with captions and faces."""
    folder.mkdir(parents=True)
    places = [folder / f"{number:03d}.png" for number in range(count)]
    for number, place in enumerate(places):
        width, height = SHAPES[number % len(SHAPES)]
        tiny.picture(seed=number, width=width, height=height).save(place)
        place.with_suffix(".txt").write_text(f"thing {number}")
        face = tiny_bases.numbers(512, seed=number)
        np.save(place.with_suffix(".face.npy"), (face / face.norm()).numpy())
    return places


def config(home: Path, name: str, data: str = "plain", **changes: Any) -> TrainingConfig:
    """A run of few steps, each saved."""
    least = {
        "adapter__tokens": 4,  # diffusers takes a linear projection to make four
        "data__held_out": 0.2,
        "cache__precision": "fp32",
        "cache__folder": str(home / "cache"),
        "training__steps": STEPS,
        "training__save_every": 1,
        "training__keep": 9,
        "training__weight_decay": 0.0,
    }
    return tiny_training.config(home, home / data, home / "runs" / name, **{**least, **changes})


FACE: dict[str, Any] = {"adapter__lora_rank": 3}
BUCKETS = {"data__buckets": True, "data__size": 32, "data__bucket_step": 8, "training__batch_size": 2}


def take(run: Run, steps: int) -> list[float]:
    """Steps without looks and saves; their losses."""
    return [float(run.train_step(passes)["loss"]) for passes in run.feed(range(steps))]


def states(run: Run) -> list[dict[str, Any]]:
    return [run.checkpoints.load(one) for one in run.checkpoints.list_complete()]


def read_log(run: Run, name: str) -> list[float]:
    lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]
