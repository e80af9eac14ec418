"""Part in, shard out: the work of every engine, in this process, in another one or on another machine."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from imprompt.errors import DataError, TrainingError
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
        made = self._encoder.encode(samples)
        rows = [one for one in made if isinstance(one, CacheRow)]
        skipped = [(place, one.reason) for place, one in enumerate(made) if isinstance(one, Unreadable)]
        if rows:
            write_shard(path, rows, skipped)
        return len(rows), skipped


def load_shard_maker(job: ShardJob) -> ShardMaker:
    """Load the models in a process other than the one that began the run.

    Raises:
        TrainingError: the models differ from those of that process
    """
    frozen = load_frozen_base(job.config, job.device)
    if make_recipe(job.config, frozen).fingerprint != job.folder.fingerprint:
        raise TrainingError(
            f"{job.config.base.model} or its image encoder are other models in this process than where the "
            "run began; give every machine the same files"
        )
    return ShardMaker(job, frozen)
