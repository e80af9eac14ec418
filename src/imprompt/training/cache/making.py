"""Part in, shard out: what every engine does, here, in another process or on another machine."""

from dataclasses import dataclass

from imprompt.training.cache.encoding import Row, RowEncoder, recipe_of
from imprompt.training.cache.folder import CacheFolder, Receipt
from imprompt.training.cache.shards import Shard, write_shard
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import FrozenBase
from imprompt.training.samples import Part, Sample, Unreadable


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

    @property
    def fingerprint(self) -> str:
        """Of what rows follow from here."""
        return recipe_of(self._job.config, self._encoder.frozen).fingerprint

    def make(self, part: Part) -> Receipt:
        """Encode a part, unless that is done: a shard that is there is not written again.

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
        if path.exists():
            shard = Shard(path)
            return len(shard), shard.skipped
        made = self._encoder.rows(samples)
        rows = [one for one in made if isinstance(one, Row)]
        skipped = [(place, one.reason) for place, one in enumerate(made) if isinstance(one, Unreadable)]
        if rows:
            write_shard(path, rows, skipped)
        return len(rows), skipped
