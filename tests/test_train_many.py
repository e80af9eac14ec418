"""Two processes train as one does: the same samples in the same order, the same gradients."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_training
import training_processes


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    models = tiny_training.write_base(tmp_path_factory.mktemp("models"))
    pictures = tiny_training.write_pictures(tmp_path_factory.mktemp("data") / "pictures")
    return tiny_training.values(models, pictures, tmp_path_factory.mktemp("runs") / "run")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def shares(settings: dict[str, Any], processes: int, folder: Path) -> list[dict[str, Any]]:
    port, report = free_port(), str(folder / f"of-{processes}")
    every = [
        training_processes.start_process(
            training_processes.train_share, rank, processes, port, settings, report
        )
        for rank in range(processes)
    ]
    for process in every:
        process.join()
    assert [process.exitcode for process in every] == [0] * processes
    return [torch.load(f"{report}-{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_equal_one(settings: dict[str, Any], tmp_path: Path) -> None:
    (one,) = shares(settings, 1, tmp_path)
    two = shares(settings, 2, tmp_path)
    for step in range(3):
        together = [caption for share in two for caption in share["captions"][step]]
        assert together == one["captions"][step]
        for mine, *theirs in zip(
            one["gradients"][step], *(share["gradients"][step] for share in two), strict=True
        ):
            assert torch.equal(*theirs)  # both take the same step
            torch.testing.assert_close(theirs[0], mine, rtol=1e-6, atol=1e-6)
            assert mine.abs().max() > 0
