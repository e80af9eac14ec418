"""Part in, shard out: what every engine does, here, in another process or on another machine."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from imprompt.errors import DataError, TrainingError
from imprompt.training.cache.encoding import Row, RowEncoder, recipe_of
from imprompt.training.cache.folder import CacheFolder, Receipt
from imprompt.training.cache.shards import Shard, write_shard
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import FrozenBase, load_frozen
from imprompt.training.samples import Part, Sample, Unreadable

Progress = Callable[[int, int], None]
"""Called with the samples that are done and those that there are."""


@dataclass(frozen=True)
class Job:
    """What a worker must know; picklable.

    Attributes:
        config: of the run
        folder: where shards go
        device: of the frozen models
    """

    config: TrainingConfig
    folder: CacheFolder
    device: str


class ShardMaker:
    """Turns parts into shards.

    Args:
        job: of the run
        frozen: the models, on the job's device
    """

    def __init__(self, job: Job, frozen: FrozenBase) -> None:
        self._job, self._encoder = job, RowEncoder(frozen, job.config)

    def make(self, part: Part) -> Receipt:
        """Encode a part, unless that is done: a shard that is there and whole is not written again.

        Raises:
            OutputError: it cannot be written
            DataError: a value that the cache's precision cannot hold
        """
        read = list(part.samples())
        samples = [one for one in read if isinstance(one, Sample)]
        name = self._job.folder.shard_name(sample.key for sample in samples)
        path = self._job.folder.shard(name)
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
        """How many rows their shard has, written now if it is not there, and which samples are not in it."""
        path = self._job.folder.shard(name)
        with contextlib.suppress(DataError):  # not there, or damaged: it is made
            shard = Shard(path)
            shard.check()
            return len(shard), shard.skipped
        made = self._encoder.rows(samples)
        rows = [one for one in made if isinstance(one, Row)]
        skipped = [(place, one.reason) for place, one in enumerate(made) if isinstance(one, Unreadable)]
        if rows:
            write_shard(path, rows, skipped)
        return len(rows), skipped


def maker_for(job: Job) -> ShardMaker:
    """Load the models in this process, which is not the one that began the run.

    Raises:
        TrainingError: they are not the same as there
    """
    frozen = load_frozen(job.config, job.device)
    if recipe_of(job.config, frozen).fingerprint != job.folder.fingerprint:
        raise TrainingError(
            f"{job.config.base.model} or its image encoder are other models in this process than where the "
            "run began; give every machine the same files"
        )
    return ShardMaker(job, frozen)
