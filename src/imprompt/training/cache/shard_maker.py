"""Part in, shard out: the work of every engine, in this process, in another one or on another machine."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from imprompt.errors import DataError, TrainingError
from imprompt.runtime.workers import LostTask, WorkerSpec, run_tasks
from imprompt.training.cache.encode import CacheRow, RowEncoder, make_recipe
from imprompt.training.cache.folder import CacheFolder, Receipt
from imprompt.training.cache.shards import Shard, write_shard
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase, load_frozen_base
from imprompt.training.samples import Part, Sample, Unreadable

Progress = Callable[[int, int], None]
"""Called with the number of finished samples and of all."""


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to know; picklable.

    Attributes:
        config: the run
        folder: the folder for shards
        device: the device of the frozen models
    """

    config: TrainingConfig
    folder: CacheFolder
    device: str


class ShardMaker:
    """Encodes parts as shards.

    Args:
        job: the run
        frozen: the models on the job's device
    """

    def __init__(self, job: ShardJob, frozen: FrozenBase) -> None:
        self._job, self._encoder = job, RowEncoder(frozen, job.config)

    def make(self, part: Part) -> Receipt:
        """Encode a part; an intact shard that exists already is not written again.

        Raises:
            OutputError: it cannot be written
            DataError: a value that the cache's precision cannot hold
        """
        read = list(part.samples())
        samples = [one for one in read if isinstance(one, Sample)]
        name = self._job.folder.shard_name(sample.key for sample in samples)
        path = self._job.folder.shard_path(name)
        rows, damaged = (0, []) if not samples else self._rows(samples, name)
        reasons = {id(samples[place]): reason for place, reason in damaged}
        skipped = tuple(
            (one.name, one.reason if isinstance(one, Unreadable) else reasons[id(one)])
            for one in read
            if isinstance(one, Unreadable) or id(one) in reasons
        )
        receipt = Receipt(name if path.exists() else "", rows, skipped)
        self._job.folder.write_receipt(part, self._job.config.data, receipt)
        return receipt

    def _rows(self, samples: list[Sample], name: str) -> tuple[int, list[tuple[int, str]]]:
        """Write the shard if it is missing; return its number of rows and the skipped samples."""
        path = self._job.folder.shard_path(name)
        with contextlib.suppress(DataError):  # not there, or damaged: it is made
            shard = Shard(path)
            shard.check()
            return len(shard), shard.skipped
        encoded = self._encoder.encode(samples)
        rows = [one for one in encoded if isinstance(one, CacheRow)]
        skipped = [(place, one.reason) for place, one in enumerate(encoded) if isinstance(one, Unreadable)]
        if rows:
            write_shard(path, rows, skipped)
        return len(rows), skipped


def make_shards(parts: Sequence[Part], job: ShardJob, frozen: FrozenBase) -> Iterator[tuple[int, Receipt]]:
    """Encode all parts; yield the number and the receipt of each when it is done, in any order.

    This process, several processes or Ray write the same shards, byte for byte.

    Args:
        parts: parts of the data
        job: the run
        frozen: the models of this process; other processes load their own

    Raises:
        MissingExtra: Ray is configured and is not installed
        TrainingError: processes keep dying on the same part, or load other models
        ImpromptError: an error in a process
    """
    cache = job.config.cache
    if cache.engine == "processes" and cache.workers == 1:
        make = ShardMaker(job, frozen).make
        yield from ((number, make(part)) for number, part in enumerate(parts))
        return
    job = replace(job, folder=replace(job.folder, cache=job.folder.cache.resolve()))
    workers = WorkerSpec(prepare_worker, job, job.device, cache.workers)
    for number, receipt in run_tasks(parts, workers, cache.engine):
        if isinstance(receipt, LostTask):
            raise TrainingError(
                f"{receipt.reason} while they encoded the same samples (out of memory?); set cache.workers "
                "or cache.batch_size lower and run again: what is done stays"
            )
        yield number, receipt


def prepare_worker(job: ShardJob, device: str) -> Callable[[Part], Receipt]:
    """Load the models in a process other than the one that began the run; return what encodes a part.

    Raises:
        TrainingError: the models differ from those of that process
    """
    frozen = load_frozen_base(job.config, device)
    if make_recipe(job.config, frozen).fingerprint != job.folder.fingerprint:
        raise TrainingError(
            f"{job.config.base.model} or its image encoder are other models in this process than where the "
            "run began; give every machine the same files"
        )
    return ShardMaker(replace(job, device=device), frozen).make
