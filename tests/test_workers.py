"""Workers on this machine: every task is done though some of them die, and what goes wrong is said."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from imprompt.errors import DataError
from imprompt.runtime.workers import LostTask, WorkerSpec, run_tasks


def shouting(log: Path, device: str) -> Callable[[str], str]:
    """Each task is noted; "deadly-N" kills the first N who take it on."""

    def do(task: str) -> str:
        with log.open("a") as file:
            file.write(f"{task}\n")
        word, _, deaths = task.partition("-")
        if word == "deadly" and log.read_text().split().count(task) <= int(deaths):
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "wrong":
            raise DataError("there is no such picture")
        if word == "broken":
            raise ZeroDivisionError
        return f"{task} on {device}"

    return do


def done(log: Path, *tasks: str) -> dict[int, str | LostTask]:
    return dict(run_tasks(tasks, WorkerSpec(shouting, log, "cpu", 2), "processes"))


@pytest.mark.slow
def test_a_death_costs_the_task_it_fell_on_and_too_many_cost_it_for_good(tmp_path: Path) -> None:
    tasks = ("one", "deadly-2", "two", "deadly-9", "three")
    made = done(tmp_path / "log", *tasks)
    assert made.pop(3) == LostTask("3 processes died")
    assert made == {number: f"{tasks[number]} on cpu" for number in (0, 1, 2, 4)}
    taken_on = Counter((tmp_path / "log").read_text().split())
    assert taken_on == {"one": 1, "deadly-2": 3, "two": 1, "deadly-9": 3, "three": 1}
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("ForkServer")]


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [("wrong", DataError, "there is no such picture"), ("broken", RuntimeError, "ZeroDivisionError")],
)
def test_what_a_worker_cannot_do_ends_the_run(
    tmp_path: Path, task: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        done(tmp_path / "log", task)
