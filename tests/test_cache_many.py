"""The cache made by several processes: the same bytes, and nothing twice."""

from pathlib import Path

import pytest

import cache_parts
from cache_parts import Sources, shards, times_read, toy_config
from conftest import ToyModel
from imprompt.errors import TrainingError
from imprompt.training.cache import build_cache
from imprompt.training.frozen_base import load_frozen_base


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Sources:
    return Sources(monkeypatch)


def test_two_processes_make_the_same_bytes_as_one_and_a_killed_one_loses_only_its_part(
    tmp_path: Path, toy: ToyModel, sources: Sources
) -> None:
    sources.read["things"] = cache_parts.samples(30)
    alone, together = tmp_path / "1", tmp_path / "2"
    build_cache(toy_config(alone, toy), load_frozen_base(toy_config(alone, toy), "cpu"))
    sources.log, sources.kills = str(tmp_path / "log"), (3, 1)
    several = toy_config(together, toy, workers=2)
    built = build_cache(several, load_frozen_base(several, "cpu"))
    assert shards(together) == shards(alone)
    assert len(built) == 30
    read = times_read(tmp_path / "log")
    assert read.pop("part-3") == 2
    assert set(read.values()) == {1}
    assert len(read) == 7


@pytest.mark.slow
def test_processes_that_keep_dying_on_a_part_end_the_run_and_what_is_done_stays(
    tmp_path: Path, toy: ToyModel, sources: Sources
) -> None:
    sources.read["things"] = cache_parts.samples(10)
    sources.log, sources.kills = str(tmp_path / "log"), (1, 3)
    several = toy_config(tmp_path, toy, workers=2)
    with pytest.raises(TrainingError, match="3 processes died"):
        build_cache(several, load_frozen_base(several, "cpu"))
    done = len(shards(tmp_path))
    assert len(build_cache(several, load_frozen_base(several, "cpu"))) == 10
    assert sum(times_read(tmp_path / "log").values()) <= 3 + done + (3 - done) + 1
