"""The reader of a cache: rows by number, through memory maps."""

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

from imprompt.inputs.choices import Input
from imprompt.training.cache.folder import CacheFolder, Manifest
from imprompt.training.cache.shards import Shard
from imprompt.training.cache.split import split_rows
from imprompt.training.config import DataSettings
from imprompt.training.samples import Unreadable

Bucket = tuple[int, int]
"""Height and width of latents."""

MAX_OPEN_SHARDS = 1024
"""Largest number of shards mapped at once; smaller if the system allows fewer than 4,096 open files."""


class CachedSamples:
    """Encoded samples in the order of their source.

    It may be pickled and forked; each process maps the files for itself.

    Args:
        folder: the cache
        manifest: the shards to read
        data: the settings of the split
        held_out: a second source to hold out; its rows follow those of the first one
        blanks: encodings that replace a dropped image
        skipped: the unusable samples
        notes: sentences about the cache for the log

    Attributes:
        train: numbers of the rows to train on, rising
        held_out: numbers of the rows to look at, rising
        digest: SHA-256 of the samples on both sides, in order, in hexadecimal
        buckets: rows of `train` by the size of their latents
        blanks: encodings that replace a dropped image, float32
        skipped: unusable samples
        notes: sentences about the cache for the log

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
        every = [self._read_index(number) for number in range(len(self._names))]
        self._ends = list(accumulate(len(keys) for keys, _, _ in every))
        keys, pictures, self._sizes = (np.concatenate(columns) for columns in zip(*every, strict=True))
        self.train, self.held_out = split_rows(pictures, manifest.rows, data)
        self.digest = hash_split(keys[self.train], keys[self.held_out])
        self.buckets = group_by_bucket(self.train, self._sizes)
        self.blanks = add_face_blank(blanks, self.row(0))

    def _read_index(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the keys of a shard's samples, the digests of their images, their latents' sizes."""
        shard = self._shard(number)
        sizes = shard.shapes["moments"][:, 1:].astype(np.int32)
        return np.array(shard.keys), np.array(shard.pictures), sizes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        """Return the number of rows, including those that are neither trained on nor held out."""
        return self._ends[-1]

    def bucket(self, number: int) -> Bucket:
        """Return height and width of a row's latents."""
        height, width = self._sizes[number].tolist()
        return height, width

    def row(self, number: int) -> dict[str, Tensor]:
        """Return a sample's tensors, in the cache's precision.

        moments             "twochannels height width": mean and log-variance of the latents
        text_embeddings     "length width", if `cache.text` is "states"; with SDXL also pooled_text, "width"
        image_embedding, image_features, face_embedding
                            "references ...", what the variant's projection takes
        mask                "1 height width", 0–1, of samples that have one
        size_condition      "6", int64, if the base needs it: see `FrozenBase.build_added_conditions`
        """
        shard, row = self._at(number)
        return shard.tensors(row)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the tensors of several samples."""
        return [self.row(number) for number in numbers]

    def caption(self, number: int) -> str:
        """Return a sample's text."""
        shard, row = self._at(number)
        return shard.caption(row)

    def key(self, number: int) -> bytes:
        """Return a sample's `Sample.key`."""
        shard, row = self._at(number)
        return shard.keys[row].tobytes()

    def thumbnails(self, number: int) -> UInt8[Tensor, "references 64 64 3"]:
        """Return the encoder's view of a sample's references, small."""
        shard, row = self._at(number)
        return decode_thumbnails(shard.thumbnails(row))

    def _at(self, number: int) -> tuple[Shard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        return self._shard(shard), int(number) - (self._ends[shard - 1] if shard else 0)

    def _shard(self, number: int) -> Shard:
        if number not in self._maps:
            if len(self._maps) >= max_open_shards():
                self._maps.clear()
            self._maps[number] = Shard(self._folder.shard_path(self._names[number]))
        return self._maps[number]


def max_open_shards() -> int:
    """Return how many shards may be mapped at once; a map keeps its file open, and a run needs others."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return MAX_OPEN_SHARDS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_SHARDS if allowed < 0 else max(8, min(MAX_OPEN_SHARDS, allowed // 4))


def group_by_bucket(rows: np.ndarray, sizes: np.ndarray) -> dict[Bucket, np.ndarray]:
    """Group rows by the size of their latents, smallest first; `sizes` is "rows 2"."""
    shapes = np.unique(sizes[rows], axis=0).tolist()
    return {(h, w): rows[(sizes[rows] == (h, w)).all(axis=1)] for h, w in shapes}


def hash_split(train: UInt8[np.ndarray, "train 32"], held_out: UInt8[np.ndarray, "held_out 32"]) -> str:
    """Return the SHA-256 of the samples' keys, with which a resumed run compares its data."""
    return hashlib.sha256(train.tobytes() + b"/" + held_out.tobytes()).hexdigest()


def add_face_blank(blanks: Mapping[Input, Tensor], row: Mapping[str, Tensor]) -> dict[Input, Tensor]:
    """Add what replaces a dropped face: zeros (ip_adapter_faceid.py of the official code)."""
    if "face_embedding" not in row:
        return dict(blanks)
    return {**blanks, "face_embedding": torch.zeros(row["face_embedding"].shape[1])}


def decode_thumbnails(files: Sequence[bytes]) -> UInt8[Tensor, "references 64 64 3"]:
    """Decode JPEG files."""
    return torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(data)))) for data in files])
