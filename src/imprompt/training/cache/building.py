"""A run's configuration → its samples, cached: what is not there yet is made first."""

from collections.abc import Callable, Sequence

from imprompt.training.cache.encoding import blanks_of, recipe_of
from imprompt.training.cache.engines import make_all
from imprompt.training.cache.folder import CacheFolder, Manifest, Receipt
from imprompt.training.cache.live import LiveSamples
from imprompt.training.cache.making import Job, Progress
from imprompt.training.cache.reading import CachedSamples
from imprompt.training.cache.skipping import none_left, refusal, too_many
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import FrozenBase
from imprompt.training.samples import Part, Unreadable, open_source


def build_cache(
    config: TrainingConfig,
    frozen: FrozenBase | Callable[[], FrozenBase],
    on_progress: Progress = lambda done, total: None,
) -> CachedSamples | LiveSamples:
    """Make what is missing of a run's cache, and open it; without a cache, look through the samples.

    May be called again after anything: parts that are done are not done again. A sample that cannot be used
    is left out and written down; more than 1 % of them (but 1 may always be) stop it.

    Args:
        config: of the run
        frozen: the models, or what loads them
        on_progress: told how far it is

    Raises:
        DataError: no usable data, too much of it damaged, or a cache that does not hold the run's source
        OutputError: the cache cannot be written
        MissingExtra: Ray is asked for and is not installed
    """
    base = frozen if isinstance(frozen, FrozenBase) else frozen()
    if not config.cache.enabled:
        return LiveSamples(config, base, on_progress)
    recipe = recipe_of(config, base)
    folder = CacheFolder(config.cache_folder, recipe.fingerprint)
    folder.begin(recipe, blanks_of(config, base))
    builder = _Builder(config, base, folder, on_progress)
    data = config.data
    manifest = builder.build(data.source, held_out=False) if data.source else folder.only_manifest()
    apart = builder.build(data.held_out, held_out=True) if isinstance(data.held_out, str) else None
    return CachedSamples(folder, manifest, data, apart, builder.skipped)


class _Builder:
    """Brings sources into a cache."""

    def __init__(
        self, config: TrainingConfig, frozen: FrozenBase, folder: CacheFolder, on_progress: Progress
    ) -> None:
        self.config, self.frozen, self.folder, self.on_progress = config, frozen, folder, on_progress
        self.skipped: list[Unreadable] = []

    def build(self, source: str, *, held_out: bool) -> Manifest:
        """Make what is missing of a source, and note that it is complete."""
        parts = open_source(source, self.config.data, self.config.cache.shard_size)
        receipts = self._receipts(source, parts)
        shards = tuple((one.shard, one.rows) for one in receipts if one.shard)
        skipped = [Unreadable(*fault) for one in receipts for fault in one.skipped]
        if not shards:
            raise none_left(skipped[0], source)
        manifest = Manifest(source, held_out, shards, len(skipped))
        self.folder.write_manifest(manifest, skipped)
        self.skipped += skipped
        return manifest

    def _receipts(self, source: str, parts: Sequence[Part]) -> list[Receipt]:
        """What all parts have become, in order."""
        found = [self.folder.receipt(part, self.config.data) for part in parts]
        tally = _Tally(source, parts, self.folder, self.on_progress)
        for number, receipt in enumerate(found):
            if receipt is not None:
                tally.add(number, receipt)
        missing = [number for number, receipt in enumerate(found) if receipt is None]
        if missing:
            job = Job(self.config, self.folder, str(self.frozen.device))
            for number, receipt in make_all([parts[number] for number in missing], job, self.frozen):
                tally.add(missing[number], receipt)
        return tally.in_order()


class _Tally:
    """Counts what is done, and stops when too much of it cannot be used."""

    def __init__(
        self, source: str, parts: Sequence[Part], folder: CacheFolder, on_progress: Progress
    ) -> None:
        self._source, self._parts, self._folder, self._on_progress = source, parts, folder, on_progress
        self._total = sum(len(part) for part in parts)
        self._done, self._skipped = 0, 0
        self._receipts: dict[int, Receipt] = {}

    def add(self, number: int, receipt: Receipt) -> None:
        """Take the receipt of a part.

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
            raise refusal(skipped, self._total, self._source, path)

    def in_order(self) -> list[Receipt]:
        """The receipts of all parts that are done, in the source's order."""
        return [self._receipts[number] for number in sorted(self._receipts)]
