"""Shards made by Ray tasks, on one machine or on many that share the cache's folder and the data.

A task whose process or machine dies is started again by Ray; a shard that was finished is not made again.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from imprompt.errors import ImpromptError, TrainingError
from imprompt.training.cache.folder import CacheFolder, Receipt
from imprompt.training.cache.making import Job, ShardMaker, maker_for
from imprompt.training.samples import Part

RETRIES = 3
"""How often Ray starts a task again whose process has died."""

_makers: dict[Job, ShardMaker] = {}
"""Of this process: its models are loaded for its first task only."""


def make_with_ray(parts: Sequence[Part], job: Job) -> Iterator[tuple[int, Receipt]]:
    """Make all parts, `cache.workers` at a time; yields the number of each as it is done, and its receipt.

    Uses the Ray that is running: the one this process is connected to, else that of RAY_ADDRESS, else it
    starts one for the time being.

    Raises:
        TrainingError: processes keep dying on the same part
        ImpromptError: what a task could not do
    """
    ray: Any = importlib.import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        yield from _make(ray, parts, job)
    finally:
        if ours:
            ray.shutdown()


def _make(ray: Any, parts: Sequence[Part], job: Job) -> Iterator[tuple[int, Receipt]]:
    needs_gpu = torch.device(job.device).type == "cuda"
    task = ray.remote(num_cpus=1, num_gpus=int(needs_gpu), max_retries=RETRIES)(_made)
    told = ray.put((job.config, job.folder.cache.resolve(), job.folder.fingerprint, job.device, Path.cwd()))
    waiting = list(reversed(range(len(parts))))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < job.config.cache.workers:
            number = waiting.pop()
            running[task.remote(told, parts[number])] = number
        done, _ = ray.wait(list(running))
        for reference in done:
            yield running.pop(reference), _receipt(ray, reference)


def _receipt(ray: Any, reference: Any) -> Receipt:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, ImpromptError) else error from None
    except ray.exceptions.RayError as error:
        raise TrainingError(
            f"Ray gave up on a task ({type(error).__name__}) after {RETRIES} retries (out of memory?); "
            "set cache.workers or cache.batch_size lower and run again: what is done stays"
        ) from error


def _made(told: tuple[Any, Path, str, str, Path], part: Part) -> Receipt:
    """A task: make one part."""
    config, cache, fingerprint, device, here = told
    if here.is_dir():
        os.chdir(here)  # the data's paths are as the command was given them
    job = Job(config, CacheFolder(cache, fingerprint), device)
    if job not in _makers:
        _makers.clear()
        _makers[job] = maker_for(job)
    return _makers[job].make(part)
