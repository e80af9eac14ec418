"""What encodes the parts: this process, several processes, or Ray. The result is the same, byte for byte."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from imprompt.errors import TrainingError
from imprompt.runtime.workers import LostTask, WorkerSpec, run_tasks
from imprompt.training.cache.folder import Receipt
from imprompt.training.cache.shard_maker import ShardJob, ShardMaker, load_shard_maker
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.samples import Part


def make_shards(parts: Sequence[Part], job: ShardJob, frozen: FrozenBase) -> Iterator[tuple[int, Receipt]]:
    """Encode all parts; yield the number and the receipt of each when it is done, in any order.

    Args:
        parts: parts of the data
        job: the run
        frozen: the models of this process; other processes load their own

    Raises:
        MissingExtra: Ray is configured and is not installed
        TrainingError: processes keep dying on the same part
        ImpromptError: an error in a process
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


def _maker(job: ShardJob, device: str) -> Callable[[Part], Receipt]:
    return load_shard_maker(replace(job, device=device)).make
