"""The cache made by several processes and by Ray: the same bytes, and nothing twice."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cache_parts
from cache_parts import Sources
from conftest import ToyModel
from imprompt.errors import TrainingError
from imprompt.training.cache import build_cache
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import load_frozen


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Sources:
    return Sources(monkeypatch)


def config(folder: Path, toy: ToyModel, **cache: Any) -> TrainingConfig:
    base = {"model": str(toy.base), "image_encoder": str(toy.image_encoder)}
    return cache_parts.config(folder, base=base, cache=cache)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("cache/*/shards/*")}


def times_read(log: Path) -> Counter[str]:
    return Counter(log.read_text().split())


def test_two_processes_make_the_same_bytes_as_one_and_a_killed_one_loses_only_its_part(
    tmp_path: Path, toy: ToyModel, sources: Sources
) -> None:
    sources.read["things"] = cache_parts.samples(30)
    alone, together = tmp_path / "1", tmp_path / "2"
    build_cache(config(alone, toy), load_frozen(config(alone, toy), "cpu"))
    sources.log, sources.kills = str(tmp_path / "log"), (3, 1)
    several = config(together, toy, workers=2)
    built = build_cache(several, load_frozen(several, "cpu"))
    assert shards(together) == shards(alone)
    assert len(built) == 30
    read = times_read(tmp_path / "log")
    assert read.pop("part-3") == 2
    assert set(read.values()) == {1}
    assert len(read) == 7


def test_processes_that_keep_dying_on_a_part_end_the_run_and_what_is_done_stays(
    tmp_path: Path, toy: ToyModel, sources: Sources
) -> None:
    sources.read["things"] = cache_parts.samples(10)
    sources.log, sources.kills = str(tmp_path / "log"), (1, 3)
    several = config(tmp_path, toy, workers=2)
    with pytest.raises(TrainingError, match="3 processes died"):
        build_cache(several, load_frozen(several, "cpu"))
    done = len(shards(tmp_path))
    assert len(build_cache(several, load_frozen(several, "cpu"))) == 10
    assert sum(times_read(tmp_path / "log").values()) <= 3 + done + (3 - done) + 1


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on this machine, with two processes, and no word to anybody outside."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default its processes wait for all others
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # our parts' class
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 * 1024**2,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_makes_the_same_bytes_and_a_killed_task_loses_only_its_part(
    tmp_path: Path, toy: ToyModel, sources: Sources, ray: Any
) -> None:
    sources.read["things"] = cache_parts.samples(14)
    alone, together = tmp_path / "1", tmp_path / "2"
    build_cache(config(alone, toy), load_frozen(config(alone, toy), "cpu"))
    sources.log, sources.kills = str(tmp_path / "log"), (1, 1)
    tasks = config(together, toy, engine="ray", workers=2)
    built = build_cache(tasks, load_frozen(tasks, "cpu"))
    assert shards(together) == shards(alone)
    assert len(built) == 14
    read = times_read(tmp_path / "log")
    assert read.pop("part-1") == 2
    assert set(read.values()) == {1}
    assert len(read) == 3
