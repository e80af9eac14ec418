"""Where a cache's files are: one folder for each recipe, with shards that several runs and sources share.

    CACHE/0123456789abcdef/         named after the recipe's fingerprint
        recipe.json                 what the fingerprint is of
        blanks.safetensors          what stands for a dropped image
        shards/NAME.safetensors     named after the content of its samples; never rewritten
        receipts/NAME.json          a part of a source has become this shard; named after the part's identity
        manifest-NAME.json          a source, complete: its shards in order
        skipped-NAME.jsonl          samples of a source that cannot be used: name and reason

A receipt is written after its shard, a manifest after all receipts: whatever is there is true. Any number
of processes and machines may write at once: each file is written whole, and two of the same name are equal.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save
from torch import Tensor

from imprompt.encoder import Input
from imprompt.errors import DataError, OutputError
from imprompt.output import written_whole
from imprompt.training.cache.encoding import Recipe
from imprompt.training.cache.skipping import write_skipped
from imprompt.training.config import DataSettings
from imprompt.training.samples import Part, Unreadable


@dataclass(frozen=True)
class Receipt:
    """What a part has become.

    Attributes:
        shard: the name of its shard; "" if none of its samples can be used
        rows: how many rows that has
        skipped: samples that cannot be used, as (name, reason)
    """

    shard: str
    rows: int
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A source that is in the cache completely.

    Attributes:
        source: as the configuration names it
        held_out: whether it is for looking only
        shards: (name, rows), in the source's order
        skipped: how many samples could not be used
    """

    source: str
    held_out: bool
    shards: tuple[tuple[str, int], ...]
    skipped: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(rows for _, rows in self.shards)


@dataclass(frozen=True)
class CacheFolder:
    """The folder of one recipe in a cache."""

    cache: Path
    fingerprint: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.cache / self.fingerprint[:16]

    def begin(self, recipe: Recipe, blanks: dict[Input, Tensor]) -> None:
        """Make the folder, if it is not there, and note what it is for.

        Raises:
            OutputError: it cannot be made
        """
        try:
            for name in ("shards", "receipts"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be made: {error.strerror or error}") from error
        if not (self.path / "blanks.safetensors").exists():
            _write_json(self.path / "recipe.json", recipe.entries)
            _write(self.path / "blanks.safetensors", save({str(name): blanks[name] for name in blanks}))

    def _sweep(self) -> None:
        """Remove what killed processes left half-written: nobody writes one file for an hour."""
        for path in self.path.glob("*/.imprompt-*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()

    def blanks(self) -> dict[Input, Tensor]:
        """What stands for a dropped image."""
        return cast(dict[Input, Tensor], load_file(self.path / "blanks.safetensors"))

    def shard(self, name: str) -> Path:
        """The file of a shard."""
        return self.path / "shards" / f"{name}.safetensors"

    def shard_name(self, keys: Iterable[bytes]) -> str:
        """What the shard of samples with these keys is called."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for key in keys:
            digest.update(key)
        return digest.hexdigest()[:32]

    def receipt(self, part: Part, data: DataSettings) -> Receipt | None:
        """What a part has become, if it is done and its shard is there."""
        path = self._receipt_path(part, data)
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        found = Receipt(values["shard"], values["rows"], tuple((n, r) for n, r in values["skipped"]))
        return found if not found.shard or self.shard(found.shard).exists() else None

    def write_receipt(self, part: Part, data: DataSettings, receipt: Receipt) -> None:
        """Note that a part is done."""
        _write_json(self._receipt_path(part, data), asdict(receipt))

    def _receipt_path(self, part: Part, data: DataSettings) -> Path:
        words = json.dumps([part.identity, data.columns.model_dump()])
        return self.path / "receipts" / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"

    def write_manifest(self, manifest: Manifest, skipped: Sequence[Unreadable]) -> None:
        """Note that a source is complete."""
        self.write_skipped(manifest.source, skipped)
        _write_json(self._manifest_path(manifest.source, manifest.held_out), asdict(manifest))

    def write_skipped(self, source: str, skipped: Sequence[Unreadable]) -> Path:
        """Write down which samples cannot be used, each once, in order; return where."""
        path = self.path / f"skipped-{_short(source)}.jsonl"
        write_skipped(path, skipped)
        return path

    def _manifest_path(self, source: str, held_out: bool) -> Path:
        return self.path / f"manifest-{'held-out-' if held_out else ''}{_short(source)}.json"

    def manifests(self) -> Iterator[Manifest]:
        """Every source that is complete."""
        for path in sorted(self.path.glob("manifest-*.json")):
            values: dict[str, Any] = json.loads(path.read_text())
            shards = tuple((name, rows) for name, rows in values["shards"])
            yield Manifest(values["source"], values["held_out"], shards, values["skipped"])

    def only_manifest(self) -> Manifest:
        """The one source that is complete, for a run that names none.

        Raises:
            DataError: there is none, or there are several
        """
        found = [manifest for manifest in self.manifests() if not manifest.held_out]
        if len(found) != 1:
            there = ", ".join(repr(manifest.source) for manifest in found) or "none"
            raise DataError(
                f"data.source is empty, and the cache {self.path} must then hold exactly one finished source "
                f"for these encoders and sizes; it holds: {there}"
            )
        return found[0]


def _short(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _write_json(path: Path, values: Any) -> None:
    _write(path, json.dumps(values, indent=1, ensure_ascii=False).encode())


def _write(path: Path, data: bytes) -> None:
    with written_whole(path) as part:
        part.write_bytes(data)
