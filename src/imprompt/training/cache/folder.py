"""The files of a cache: one folder for each recipe, with shards that runs and sources share.

    CACHE/0123456789abcdef/         named after the recipe's fingerprint
        recipe.json                 what the fingerprint is of
        shards/NAME.safetensors     named after the content of its samples; never rewritten
        receipts/NAME.json          a part of a source has become this shard; named after the part's identity
        manifest-NAME.json          a source, complete: its shards in order
        skipped-NAME.jsonl          samples of a source that cannot be used: name and reason

A receipt is written after its shard, and a manifest after all receipts, so that every existing file is valid.
Any number of processes and machines may write at once: each file is written atomically, and two files of the
same name are equal. Each file that is read back holds its SHA-256; a damaged file counts as missing and is
written again. A finished cache is only read, so that its folder may be read-only.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from imprompt.errors import DataError
from imprompt.runtime.faults import write_faults
from imprompt.runtime.output import make_folder, remove_stale_parts
from imprompt.training.cache.encode import CacheRecipe
from imprompt.training.cache.shards import Shard
from imprompt.training.config import DataSettings
from imprompt.training.integrity import read_json, write_json
from imprompt.training.samples import Part, Unreadable

Second = TypeVar("Second", str, int)


@dataclass(frozen=True)
class Receipt:
    """The result of encoding a part.

    Attributes:
        shard: the name of its shard; "" if none of its samples is usable
        rows: the number of its rows
        skipped: unusable samples, as (name, reason)
    """

    shard: str
    rows: int
    skipped: tuple[tuple[str, str], ...] = ()


class PartState(NamedTuple):
    """What a cache holds of a part.

    Attributes:
        receipt: None if the part must be encoded
        damage: a phrase that names a damaged file; empty if there is none
        unchecked: whether its shard is of an earlier version and holds no SHA-256
    """

    receipt: Receipt | None
    damage: str = ""
    unchecked: bool = False


@dataclass(frozen=True)
class Manifest:
    """A source that is in the cache completely.

    Attributes:
        source: the name in the configuration
        held_out: whether it is for evaluation only
        shards: (name, rows), in the source's order
        skipped: the number of unusable samples
    """

    source: str
    held_out: bool
    shards: tuple[tuple[str, int], ...]
    skipped: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(rows for _, rows in self.shards)


@dataclass(frozen=True)
class CacheFolder:
    """The folder of one recipe in a cache."""

    cache: Path
    fingerprint: str

    @property
    def path(self) -> Path:
        """The path of the folder."""
        return self.cache / self.fingerprint[:16]

    def create(self, recipe: CacheRecipe) -> None:
        """Make the folder if it does not exist, and write down its recipe.

        Raises:
            OutputError: it cannot be made
        """
        for name in ("shards", "receipts"):
            make_folder(self.path / name)
        remove_stale_parts(self.path)
        if not (self.path / "recipe.json").exists():
            write_json(self.path / "recipe.json", recipe.entries)

    def shard_path(self, name: str) -> Path:
        """Return the path of a shard."""
        return self.path / "shards" / f"{name}.safetensors"

    def shard_name(self, keys: Iterable[bytes]) -> str:
        """Return the name of the shard that holds samples with these keys."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for key in keys:
            digest.update(key)
        return digest.hexdigest()[:32]

    def inspect_part(self, part: Part, data: DataSettings, *, check: bool = True) -> PartState:
        """Return what the cache holds of a part, checked by digest; a shard only if `check`."""
        path = self._receipt_path(part, data)
        if not path.exists():
            return PartState(None)
        receipt = _parse_receipt(read_json(path))
        if receipt is None:
            return PartState(None, f"{path} was not as it was written")
        if not receipt.shard:
            return PartState(receipt)
        if not self.shard_path(receipt.shard).exists():
            return PartState(None)
        return self._check_shard(receipt, check)

    def _check_shard(self, receipt: Receipt, check: bool) -> PartState:
        path = self.shard_path(receipt.shard)
        try:
            shard = Shard(path)
            if check:
                shard.check()
        except DataError:
            return PartState(None, f"{path} was not as it was written")
        if len(shard) != receipt.rows:
            return PartState(None, f"{path} has {len(shard)} rows, its receipt says {receipt.rows}")
        return PartState(receipt, unchecked=not shard.has_digest)

    def write_receipt(self, part: Part, data: DataSettings, receipt: Receipt) -> None:
        """Record that a part is done."""
        write_json(self._receipt_path(part, data), asdict(receipt))

    def _receipt_path(self, part: Part, data: DataSettings) -> Path:
        words = json.dumps([part.identity, data.columns.model_dump()])
        return self.path / "receipts" / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"

    def write_manifest(self, manifest: Manifest, skipped: Sequence[Unreadable]) -> None:
        """Record that a source is complete."""
        self.write_skipped(manifest.source, skipped)
        write_json(self._manifest_path(manifest.source, manifest.held_out), asdict(manifest))

    def write_skipped(self, source: str, skipped: Sequence[Unreadable]) -> Path:
        """Write which samples are unusable, in order, each once; return the path."""
        path = self.path / f"skipped-{_short_hash(source)}.jsonl"
        write_faults(path, [(one.name, one.reason) for one in skipped])
        return path

    def _manifest_path(self, source: str, held_out: bool) -> Path:
        return self.path / f"manifest-{'held-out-' if held_out else ''}{_short_hash(source)}.json"

    def manifests(self) -> Iterator[Manifest]:
        """Yield every source that is complete.

        Raises:
            DataError: a manifest is not as it was written
        """
        for path in sorted(self.path.glob("manifest-*.json")):
            manifest = _parse_manifest(read_json(path))
            if manifest is None:
                raise DataError(
                    f"{path} is not as it was written; name data.source, and it is made again, or delete it"
                )
            yield manifest

    def only_manifest(self) -> Manifest:
        """Return the one complete source, for a run that names none.

        Raises:
            DataError: there is none, or there are several
        """
        manifests = [manifest for manifest in self.manifests() if not manifest.held_out]
        if len(manifests) != 1:
            there = ", ".join(repr(manifest.source) for manifest in manifests) or "none"
            raise DataError(
                f"data.source is empty, and the cache {self.path} must then hold exactly one finished source "
                f"for these encoders and sizes; it holds: {there}"
            )
        return manifests[0]


def _short_hash(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _parse_receipt(values: Mapping[str, Any] | None) -> Receipt | None:
    """Return the receipt in a file; None if it holds none."""
    match values:
        case {"shard": str(shard), "rows": int(rows), "skipped": list(skipped)}:
            faults = _parse_pairs(skipped, str)
            return None if faults is None else Receipt(shard, rows, faults)
    return None


def _parse_manifest(values: Mapping[str, Any] | None) -> Manifest | None:
    """Return the manifest in a file; None if it holds none."""
    match values:
        case {
            "source": str(source),
            "held_out": bool(held_out),
            "shards": list(listed),
            "skipped": int(skipped),
        }:
            shards = _parse_pairs(listed, int)
            return None if shards is None else Manifest(source, held_out, shards, skipped)
    return None


def _parse_pairs(values: Sequence[Any], kind: type[Second]) -> tuple[tuple[str, Second], ...] | None:
    """Return lists of a name and a value as tuples; None if one of them is something else."""
    fits = all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], kind)
        for one in values
    )
    return tuple((name, second) for name, second in values) if fits else None
