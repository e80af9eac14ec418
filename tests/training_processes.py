"""Trainings, mostly, in processes of their own: killed at any moment, or several at once.

They fork from a server that has everything imported, so each starts in a tenth of a second.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (  # noqa: F401
    StableDiffusionPipeline,
)
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection  # noqa: F401

from imprompt.training import checkpoints
from imprompt.training.adapters import train_adapter
from imprompt.training.config import parse_config
from imprompt.training.loop import Run
from imprompt.training.objectives import image_prompting

_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(["training_processes"])
# There is one server for all tests of a process: whichever starts it must not decide what it has imported.
_SERVER.set_forkserver_preload = lambda module_names: None
# The server does not look where pytest does; without this it would import nothing beforehand.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def start_process(target: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """A process that calls a function, which it can import."""
    process = _SERVER.Process(target=_quietly, args=(target, *arguments))
    process.start()
    return process


def run_to_end(target: Callable[..., None], *arguments: Any) -> None:
    """Call a function of this module in a process, and wait for it."""
    process = start_process(target, *arguments)
    process.join()
    assert process.exitcode == 0, f"ended with {process.exitcode}"


def _quietly(target: Callable[..., object], *arguments: Any) -> None:
    torch.set_num_threads(1)
    image_prompting.BANDS = (0.5,)  # as in the tests of this process: how a look is taken is tested elsewhere
    sys.stderr.flush()
    os.dup2(os.open(os.environ.get("TRAINING_ERRORS", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    target(*arguments)


def train(values: dict[str, Any]) -> None:
    """Train, or go on where the last process stopped."""
    train_adapter(parse_config(values, "test"), resume=True)


def train_until_signal(values: dict[str, Any], step: int) -> None:
    """Train, and send SIGTERM to this process before a step."""
    train_step = Run.train_step

    def signal_and_train(self: Run, passes: Any) -> Any:
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, passes)

    Run.train_step = signal_and_train  # type: ignore[method-assign]
    train(values)


def train_until_killed(values: dict[str, Any], where: str, save: int) -> None:
    """Train, and be killed inside one of the first saves of this process, at a place of `WHERE`."""
    passed = iter(range(save))

    def die(*arguments: Any, **options: Any) -> Any:
        if next(passed, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    def die_half_way(state: Any, path: Path) -> None:
        original(state, path)
        if next(passed, None) is None:
            path.write_bytes(path.read_bytes()[: random.randrange(1, path.stat().st_size)])
            os.kill(os.getpid(), signal.SIGKILL)

    place, name = WHERE[where]
    original = getattr(place, name)
    setattr(place, name, die_half_way if where == "half a state" else die)
    train(values)


WHERE: dict[str, tuple[Any, str]] = {
    "half a state": (torch, "save"),
    "before the index": (checkpoints, "write_index"),
    "before the flush": (checkpoints, "flush"),
    "before the name": (Path, "rename"),
    "before the removal": (shutil, "rmtree"),
}


def kill_after(process: ForkServerProcess, seconds: float) -> bool:
    """Kill a process at a moment; says whether it was still there."""
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process.pid or 0), signal.SIGKILL)
    process.join()
    return True


def seconds_of(target: Callable[..., None], *arguments: Any) -> float:
    """How long a call in a process takes."""
    begun = time.monotonic()
    run_to_end(target, *arguments)
    return time.monotonic() - begun


def train_share(rank: int, processes: int, port: int, values: dict[str, Any], report: str) -> None:
    """One of several processes: three steps; gradients and the order of samples go to a file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from imprompt.training import optimizer_step as module
    from imprompt.training.adapters import build_run
    from imprompt.training.frozen_base import load_frozen_base
    from imprompt.training.ranks import join_processes

    assert join_processes().num_processes == processes
    config = parse_config(values, "test")
    run = build_run(config, load_frozen_base(config, "cpu"))
    gradients: list[list[torch.Tensor]] = []
    shared = module.sum_over_processes

    def noted(parts: list[torch.Tensor]) -> None:
        shared(parts)
        gradients.append([part.clone() for part in parts])

    module.sum_over_processes = noted  # type: ignore[assignment]
    captions = []
    for passes in run.feed(range(3)):
        captions.append([caption for batch in passes for caption in batch.captions])
        run.train_step(passes)
    torch.save({"gradients": gradients, "captions": captions}, f"{report}-{rank}.pt")
    if processes > 1:
        torch.distributed.destroy_process_group()
