"""Samples made in memory, as parts that other processes can read too; some kill who reads them."""

import hashlib
import io
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from conftest import ToyModel
from imprompt.training.config import DataSettings, TrainingConfig, parse_config
from imprompt.training.samples import Sample, Unreadable


def png(seed: int, width: int = 37, height: int = 31) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed=seed, width=width, height=height).save(file, "PNG")
    return file.getvalue()


def sample(seed: int, **others: Any) -> Sample:
    values: dict[str, Any] = {"name": f"{seed}.png", "image": png(seed), "text": f"thing {seed}"}
    return Sample(**values | others)


def samples(count: int, **others: Any) -> list[Sample | Unreadable]:
    return [sample(seed, **others) for seed in range(count)]


@dataclass(frozen=True)
class MemoryPart:
    """Samples as they are; each reading is noted in `log`, and the first ones may kill the process."""

    read: tuple[Sample | Unreadable, ...]
    name: str
    log: str = ""
    kills: int = 0

    @property
    def identity(self) -> str:
        content = [one.key if isinstance(one, Sample) else one.name.encode() for one in self.read]
        return f"{self.name} {hashlib.sha256(b''.join(content)).hexdigest()}"

    def __len__(self) -> int:
        return len(self.read)

    def samples(self) -> Iterator[Sample | Unreadable]:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{self.name}\n")
            if Path(self.log).read_text().split().count(self.name) <= self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
        yield from self.read


def in_parts(
    read: Sequence[Sample | Unreadable], size: int, log: str = "", kills: tuple[int, int] = (-1, 0)
) -> list[MemoryPart]:
    return [
        MemoryPart(tuple(read[start : start + size]), f"part-{number}", log, kills[1] * (number == kills[0]))
        for number, start in enumerate(range(0, len(read), size))
    ]


class Sources:
    """Lets `open_source` find parts under made-up names."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.read: dict[str, Sequence[Sample | Unreadable]] = {}
        self.log, self.kills = "", (-1, 0)
        for module in ("build", "live_samples"):
            patch.setattr(f"imprompt.training.cache.{module}.open_source", self.open)

    def open(self, source: str, data: DataSettings, part_size: int) -> list[MemoryPart]:
        return in_parts(self.read[source], part_size, self.log, self.kills)


def face(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=6).astype(np.float32)


def config(folder: Path, **groups: Any) -> TrainingConfig:
    """A run on a tiny base with 16 px targets and shards of 4."""
    given: dict[str, Any] = {
        "preset": "mini",
        "output": str(folder / "run"),
        "data": {"source": "things", "size": 16, "held_out": 0.2},
        "cache": {"shard_size": 4, "batch_size": 3},
    }
    for name, values in groups.items():
        given[name] = given.get(name, {}) | values
    return parse_config(given, "test")


def toy_config(folder: Path, toy: ToyModel, **cache: Any) -> TrainingConfig:
    base = {"model": str(toy.base), "image_encoder": str(toy.image_encoder)}
    return config(folder, base=base, cache=cache)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("cache/*/shards/*")}


def times_read(log: Path) -> Counter[str]:
    return Counter(log.read_text().split())
