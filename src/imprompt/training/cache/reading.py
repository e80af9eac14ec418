"""The reading side of a cache: rows by number, through memory maps."""

import bisect
import hashlib
import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from imprompt.inputs.encoder import Input
from imprompt.training.cache.folder import CacheFolder, Manifest
from imprompt.training.cache.shards import Shard
from imprompt.training.cache.split import arrange
from imprompt.training.config import DataSettings
from imprompt.training.samples import Unreadable

Bucket = tuple[int, int]
"""Height and width of latents."""

MAX_OPEN_SHARDS = 1024
"""How many shards are mapped at a time; fewer where the system lets a process open fewer than 4,096 files."""


class CachedSamples:
    """Samples as frozen models see them, in the order of their source.

    It may be pickled and forked: each process maps the files for itself.

    Args:
        folder: of the cache
        manifest: which shards
        data: what is held out
        held_out: a second source to hold out; its rows stand behind the first one's
        blanks: what stands for a dropped image
        skipped: what could not be used, for those who tell
        notes: what is to be said of the cache, a sentence each

    Attributes:
        train: numbers of the rows to train on, rising
        held_out: numbers of the rows to look at, rising
        digest: SHA-256 of the samples on both sides, in order; in hexadecimal
        buckets: rows of `train` by the size of their latents
        blanks: what stands for a dropped image, float32
        skipped: samples that cannot be used
        notes: what is to be said of the cache, a sentence each

    Raises:
        DataError: a shard is missing or damaged, or there are too few pictures to hold some out
    """

    def __init__(
        self,
        folder: CacheFolder,
        manifest: Manifest,
        data: DataSettings,
        held_out: Manifest | None = None,
        *,
        blanks: Mapping[Input, Tensor],
        skipped: Sequence[Unreadable] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self._folder, self.skipped, self.notes = folder, list(skipped), list(notes)
        self._names = [name for one in (manifest, held_out) if one is not None for name, _ in one.shards]
        self._maps: dict[int, Shard] = {}
        every = [self._look(number) for number in range(len(self._names))]
        self._ends = list(accumulate(len(keys) for keys, _, _ in every))
        keys, pictures, self._sizes = (np.concatenate(columns) for columns in zip(*every, strict=True))
        self.train, self.held_out = arrange(pictures, manifest.rows, data)
        self.digest = digest_of(keys[self.train], keys[self.held_out])
        self.buckets = by_bucket(self.train, self._sizes)
        self.blanks = with_face_blank(blanks, self.row(0))

    def _look(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The keys of a shard's samples, which pictures they have, and the sizes of their latents."""
        shard = self._shard(number)
        sizes = shard.shapes["moments"][:, 1:].astype(np.int32)
        return np.array(shard.keys), np.array(shard.pictures), sizes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        """How many rows there are, those that are neither trained on nor looked at too."""
        return self._ends[-1]

    def bucket(self, number: int) -> Bucket:
        """Height and width of a row's latents."""
        height, width = self._sizes[number].tolist()
        return height, width

    def row(self, number: int) -> dict[str, Tensor]:
        """A sample's tensors, in the cache's precision.

        moments             "twochannels height width": mean and log-variance of the latents
        text_embeddings     "length width", if `cache.text` is "states"; with SDXL also pooled_text, "width"
        image_embedding, image_features, face_embedding
                            "references ...", what the variant's projection takes
        mask                "1 height width", 0–1, of samples that have one
        size_condition      "6", int64, if the base needs it: see `FrozenBase.added_conditions`
        """
        shard, row = self._at(number)
        return shard.tensors(row)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several, as `row`."""
        return [self.row(number) for number in numbers]

    def caption(self, number: int) -> str:
        """A sample's text."""
        shard, row = self._at(number)
        return shard.caption(row)

    def key(self, number: int) -> bytes:
        """A sample's `Sample.key`."""
        shard, row = self._at(number)
        return shard.keys[row].tobytes()

    def thumbnails(self, number: int) -> UInt8[Tensor, "references 64 64 3"]:
        """What the image encoder sees of a sample's references, small."""
        shard, row = self._at(number)
        return decoded_thumbnails(shard.thumbnails(row))

    def _at(self, number: int) -> tuple[Shard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        return self._shard(shard), int(number) - (self._ends[shard - 1] if shard else 0)

    def _shard(self, number: int) -> Shard:
        if number not in self._maps:
            if len(self._maps) >= most_open():
                self._maps.clear()
            self._maps[number] = Shard(self._folder.shard(self._names[number]))
        return self._maps[number]


def most_open() -> int:
    """How many shards may be mapped at a time: a map holds its file open, and a run opens others too."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return MAX_OPEN_SHARDS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_SHARDS if allowed < 0 else max(8, min(MAX_OPEN_SHARDS, allowed // 4))


def by_bucket(rows: np.ndarray, sizes: np.ndarray) -> dict[Bucket, np.ndarray]:
    """Rows by their latents' size, the sizes rising; `sizes` is "rows 2"."""
    found = np.unique(sizes[rows], axis=0).tolist()
    return {(h, w): rows[(sizes[rows] == (h, w)).all(axis=1)] for h, w in found}


def digest_of(train: UInt8[np.ndarray, "train 32"], held_out: UInt8[np.ndarray, "held_out 32"]) -> str:
    """SHA-256 of samples' keys, in hexadecimal: a resumed run compares it with that of its beginning."""
    return hashlib.sha256(train.tobytes() + b"/" + held_out.tobytes()).hexdigest()


def with_face_blank(blanks: Mapping[Input, Tensor], row: Mapping[str, Tensor]) -> dict[Input, Tensor]:
    """Add what stands for a dropped face: zeros (ip_adapter_faceid.py of the official code)."""
    if "face_embedding" not in row:
        return dict(blanks)
    return {**blanks, "face_embedding": torch.zeros(row["face_embedding"].shape[1])}


def decoded_thumbnails(files: Sequence[bytes]) -> UInt8[Tensor, "references 64 64 3"]:
    """JPEG files → pictures."""
    return torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(data)))) for data in files])
