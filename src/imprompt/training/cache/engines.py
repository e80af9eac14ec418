"""Who makes the shards: this process, several, or Ray. What comes out is the same, byte for byte."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from imprompt.errors import TrainingError
from imprompt.runtime.workers import LostTask, WorkerSpec, run_tasks
from imprompt.training.cache.folder import Receipt
from imprompt.training.cache.making import Job, ShardMaker, maker_for
from imprompt.training.frozen import FrozenBase
from imprompt.training.samples import Part


def make_all(parts: Sequence[Part], job: Job, frozen: FrozenBase) -> Iterator[tuple[int, Receipt]]:
    """Make all parts; yields the number of each as it is done, in any order, and its receipt.

    Args:
        parts: of the data
        job: of the run
        frozen: the models that this process has loaded; others load their own

    Raises:
        MissingExtra: Ray is asked for and is not installed
        TrainingError: processes keep dying on the same part
        ImpromptError: what a process could not do
    """
    cache = job.config.cache
    if cache.engine == "processes" and cache.workers == 1:
        make = ShardMaker(job, frozen).make
        yield from ((number, make(part)) for number, part in enumerate(parts))
        return
    there = replace(job, folder=replace(job.folder, cache=job.folder.cache.resolve()))
    for number, made in run_tasks(parts, WorkerSpec(_maker, there, job.device, cache.workers), cache.engine):
        if isinstance(made, LostTask):
            raise TrainingError(
                f"{made.reason} while they encoded the same samples (out of memory?); set cache.workers or "
                "cache.batch_size lower and run again: what is done stays"
            )
        yield number, made


def _maker(job: Job, device: str) -> Callable[[Part], Receipt]:
    return maker_for(replace(job, device=device)).make
