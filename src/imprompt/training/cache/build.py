"""A run's configuration → its cached samples; what the cache lacks is encoded first."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from imprompt.errors import DataError
from imprompt.runtime.faults import too_many
from imprompt.training.cache.cached_samples import CachedSamples
from imprompt.training.cache.encode import encode_blanks, make_recipe
from imprompt.training.cache.folder import CacheFolder, Manifest, PartState, Receipt
from imprompt.training.cache.live_samples import LiveSamples
from imprompt.training.cache.refusals import build_none_usable, build_refusal
from imprompt.training.cache.shard_maker import Progress, ShardJob, make_shards
from imprompt.training.cache.shards import Shard
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.samples import Part, Unreadable, open_source

_CHECKERS = 4
"""Number of threads that compare parts with their digests, about a gigabyte per second each."""


def build_cache(
    config: TrainingConfig,
    frozen: FrozenBase | Callable[[], FrozenBase],
    on_progress: Progress = lambda done, total: None,
    *,
    check: bool = True,
) -> CachedSamples | LiveSamples:
    """Encode what a run's cache lacks, and open it; without a cache, examine the samples.

    It may be called again at any time: finished parts are kept, and damaged ones are encoded again, which the
    `notes` of the result mention. An unusable sample is left out and written down. More than 1 % of them (one
    is always allowed) are an error.

    Args:
        config: the run
        frozen: the models, or a function that loads them
        on_progress: called with the number of finished samples and of all
        check: whether parts are compared with their digests, which one process per machine does

    Raises:
        DataError: no usable data, too much of it damaged, or a cache that does not hold the run's source
        OutputError: the cache cannot be written
        MissingExtra: Ray is configured and is not installed
    """
    base = frozen if isinstance(frozen, FrozenBase) else frozen()
    if not config.cache.enabled:
        return LiveSamples(config, base, on_progress)
    recipe = make_recipe(config, base)
    folder = CacheFolder(config.cache_folder, recipe.fingerprint)
    folder.create(recipe)
    builder = _Builder(config, base, folder, on_progress, check)
    data = config.data
    manifest = builder.build(data.source, held_out=False) if data.source else builder.check_complete()
    apart = builder.build(data.held_out, held_out=True) if isinstance(data.held_out, str) else None
    blanks = encode_blanks(config, base)
    return CachedSamples(
        folder, manifest, data, apart, blanks=blanks, skipped=builder.skipped, notes=builder.notes
    )


class _Builder:
    """Brings sources into a cache."""

    def __init__(
        self,
        config: TrainingConfig,
        frozen: FrozenBase,
        folder: CacheFolder,
        on_progress: Progress,
        check: bool,
    ) -> None:
        self.check = check
        self.config, self.frozen, self.folder, self.on_progress = config, frozen, folder, on_progress
        self.skipped: list[Unreadable] = []
        self.notes: list[str] = []

    def build(self, source: str, *, held_out: bool) -> Manifest:
        """Encode what the cache lacks of a source and record that it is complete."""
        parts = open_source(source, self.config.data, self.config.cache.shard_size)
        receipts = self._receipts(source, parts)
        shards = tuple((one.shard, one.rows) for one in receipts if one.shard)
        skipped = [Unreadable(*fault) for one in receipts for fault in one.skipped]
        if not shards:
            raise build_none_usable(skipped[0], source)
        manifest = Manifest(source, held_out, shards, len(skipped))
        self.folder.write_manifest(manifest, skipped)
        self.skipped += skipped
        return manifest

    def check_complete(self) -> Manifest:
        """Check the one complete source of the cache; without data nothing can be repaired."""
        manifest = self.folder.only_manifest()
        with ThreadPoolExecutor(_CHECKERS) as pool:
            names = [name for name, _ in manifest.shards]
            for done, has_digest in enumerate(pool.map(self._check_shard, names), start=1):
                self._note_unchecked(not has_digest)
                self.on_progress(done, len(names))
        return manifest

    def _check_shard(self, name: str) -> bool:
        """Return whether a shard holds a digest; raise an error if the digest does not match."""
        try:
            shard = Shard(self.folder.shard_path(name))
            if self.check:
                shard.check()
        except DataError as error:
            raise DataError(f"{error}: name data.source, and this part of the cache is made again") from error
        return shard.has_digest

    def _receipts(self, source: str, parts: Sequence[Part]) -> list[Receipt]:
        """Return the receipts of all parts, in order."""
        tally, missing = _Tally(source, parts, self.folder, self.on_progress), []
        for number, state in enumerate(self._states(parts)):
            if state.receipt is None:
                missing.append(number)
            else:
                tally.add(number, state.receipt)
        if missing:
            job = ShardJob(self.config, self.folder, str(self.frozen.device))
            for number, receipt in make_shards([parts[number] for number in missing], job, self.frozen):
                tally.add(missing[number], receipt)
        return tally.in_order()

    def _states(self, parts: Sequence[Part]) -> Iterator[PartState]:
        """Yield what the cache holds of each part, in order, and record damage."""
        with ThreadPoolExecutor(_CHECKERS) as pool:
            for state in pool.map(self._state, parts):
                if state.damage:
                    self.notes.append(f"{state.damage}: this part of the cache was made again")
                self._note_unchecked(state.unchecked)
                yield state

    def _state(self, part: Part) -> PartState:
        return self.folder.inspect_part(part, self.config.data, check=self.check)

    def _note_unchecked(self, unchecked: bool) -> None:
        note = (
            f"parts of the cache {self.folder.path} were written by an earlier version of imprompt and hold "
            "no SHA-256, so damage to them cannot be seen; delete that folder to have it made again"
        )
        if unchecked and note not in self.notes:
            self.notes.append(note)


class _Tally:
    """Counts encoded samples, and stops when too many of them are unusable."""

    def __init__(
        self, source: str, parts: Sequence[Part], folder: CacheFolder, on_progress: Progress
    ) -> None:
        self._source, self._parts, self._folder, self._on_progress = source, parts, folder, on_progress
        self._total = sum(len(part) for part in parts)
        self._done, self._skipped = 0, 0
        self._receipts: dict[int, Receipt] = {}

    def add(self, number: int, receipt: Receipt) -> None:
        """Add the receipt of a part.

        Raises:
            DataError: more samples than 1 % of all, and than 1, cannot be used
        """
        self._receipts[number] = receipt
        self._done += len(self._parts[number])
        self._skipped += len(receipt.skipped)
        self._on_progress(self._done, self._total)
        if too_many(self._skipped, self._total):
            skipped = [Unreadable(*fault) for one in self.in_order() for fault in one.skipped]
            path = self._folder.write_skipped(self._source, skipped)
            raise build_refusal(skipped, self._total, self._source, path)

    def in_order(self) -> list[Receipt]:
        """Return the receipts of all encoded parts, in the order of the source."""
        return [self._receipts[number] for number in sorted(self._receipts)]
