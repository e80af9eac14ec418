"""Ray does what this process does: the same shards, the same pictures, and nothing twice."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cache_parts
from cache_parts import Sources, shards, times_read, toy_config
from conftest import ToyModel
from imprompt.evaluation.suites.drawing import draw_all
from imprompt.training.cache import build_cache
from imprompt.training.frozen_base import load_frozen_base
from stand_in import IMAGES, SAMPLES, job_of, make_stand_in, read_drawings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("ray")]


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray on this machine, with two processes, and no word to anybody outside."""
    ray = pytest.importorskip("ray")
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    options |= {"object_store_memory": 80 * 1024**2, "_node_ip_address": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default its processes wait for all others
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # our parts' class
        ray.init(address="local", num_cpus=2, logging_level=logging.ERROR, **options)
        yield
        ray.shutdown()


@pytest.mark.slow
def test_shards_are_the_same_bytes_and_a_killed_task_loses_only_its_part(
    tmp_path: Path, toy: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Sources(monkeypatch)
    sources.read["things"] = cache_parts.samples(14)
    alone, together = tmp_path / "1", tmp_path / "2"
    build_cache(toy_config(alone, toy), load_frozen_base(toy_config(alone, toy), "cpu"))
    sources.log, sources.kills = str(tmp_path / "log"), (1, 1)
    tasks = toy_config(together, toy, engine="ray", workers=2)
    built = build_cache(tasks, load_frozen_base(tasks, "cpu"))
    assert shards(together) == shards(alone)
    assert len(built) == 14
    read = times_read(tmp_path / "log")
    assert read.pop("part-1") == 2
    assert set(read.values()) == {1}
    assert len(read) == 3


@pytest.mark.slow
def test_pictures_are_those_of_one_process(tmp_path: Path, toy: ToyModel) -> None:
    stand_in, config = make_stand_in(tmp_path / "stand-in", toy), tmp_path / "empty.toml"
    config.touch()
    tasks, here = job_of(stand_in, config, tmp_path / "here")
    _, there = job_of(stand_in, config, tmp_path / "ray", 'drawing.engine="ray"', "drawing.workers=2")
    for job in (here, there):
        counted: list[int] = []
        assert draw_all(tasks, job, counted.append) == {}
        assert sum(counted) == IMAGES * SAMPLES
    assert read_drawings(tmp_path / "ray") == read_drawings(tmp_path / "here")
