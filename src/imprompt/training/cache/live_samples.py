"""Samples without a cache, encoded again whenever they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from imprompt.errors import DataError, ImageError
from imprompt.runtime.faults import too_many, write_faults
from imprompt.runtime.output import make_folder
from imprompt.training.cache.cached_samples import (
    Bucket,
    add_face_blank,
    decode_thumbnails,
    group_by_bucket,
    hash_split,
)
from imprompt.training.cache.encode import CacheRow, RowEncoder, encode_blanks, hash_picture
from imprompt.training.cache.refusals import build_none_usable, build_refusal
from imprompt.training.cache.shard_maker import Progress
from imprompt.training.cache.split import split_rows
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.samples import Part, Sample, Unreadable, open_source

SKIPPED_FILE = "skipped.jsonl"
"""In the run's folder: samples that cannot be used."""


class _UsableSample(NamedTuple):
    """A usable sample: its part, its key, the digest of its image, the shape of its target."""

    part: Part
    key: bytes
    picture: bytes
    shape: torch.Size


class LiveSamples:
    """Like `CachedSamples`, without a cache; its rows equal those that a cache would hold.

    All images are decoded once at the beginning, to find which are unusable, which are held out, and which
    sizes occur. Only the process that has the models can use this class, not the workers of a loader.

    Args:
        config: with `cache.enabled` false
        frozen: the models
        on_progress: called with the number of examined samples of a source and their total

    Attributes:
        train, held_out, digest, buckets, blanks, skipped, notes: as of `CachedSamples`

    Raises:
        DataError: no usable data, or too much of it damaged
        OutputError: what was left out cannot be written down
    """

    def __init__(self, config: TrainingConfig, frozen: FrozenBase, on_progress: Progress) -> None:
        self._config, self._encoder = config, RowEncoder(frozen, config)
        self.skipped: list[Unreadable] = []
        self.notes: list[str] = []
        self._usable = self._examine_source(config.data.source, on_progress)
        first = len(self._usable)
        if isinstance(config.data.held_out, str):
            self._usable += self._examine_source(config.data.held_out, on_progress)
        pictures = np.frombuffer(b"".join(one.picture for one in self._usable), np.uint8).reshape(-1, 32)
        self.train, self.held_out = split_rows(pictures, first, config.data)
        keys = np.frombuffer(b"".join(one.key for one in self._usable), np.uint8).reshape(-1, 32)
        self.digest = hash_split(keys[self.train], keys[self.held_out])
        self._sizes = self._latent_sizes(frozen)
        self.buckets = group_by_bucket(self.train, self._sizes)
        self.blanks = add_face_blank(encode_blanks(config, frozen), self.row(0))

    def _examine_source(self, source: str, on_progress: Progress) -> list[_UsableSample]:
        """Decode all samples of a source; a part of it is one sample here."""
        parts = open_source(source, self._config.data, 1)
        usable: list[_UsableSample] = []
        for done, part in enumerate(parts, start=1):
            sample = self._examine_part(part)
            if isinstance(sample, _UsableSample):
                usable.append(sample)
            else:
                self._skip(sample, done - len(usable), len(parts), source)
            on_progress(done, len(parts))
        if not usable:
            raise build_none_usable(self.skipped[-1], source)
        return usable

    def _examine_part(self, part: Part) -> _UsableSample | Unreadable:
        sample = next(iter(part.samples()))
        if isinstance(sample, Unreadable):
            return sample
        try:
            return _UsableSample(
                part, sample.key, hash_picture(sample), self._encoder.decode_sample(sample).pixels.shape
            )
        except ImageError as error:
            return Unreadable(sample.name, str(error))

    def _skip(self, one: Unreadable, skipped: int, total: int, source: str) -> None:
        self.skipped.append(one)
        path = make_folder(Path(self._config.output)) / SKIPPED_FILE
        write_faults(path, [(one.name, one.reason) for one in self.skipped])
        if too_many(skipped, total):
            raise build_refusal(self.skipped[-skipped:], total, source, path)

    def _latent_sizes(self, frozen: FrozenBase) -> np.ndarray:
        shapes = {one.shape for one in self._usable}
        sizes = {shape: frozen.encode_targets(torch.zeros(1, *shape)).shape[-2:] for shape in shapes}
        return np.array([sizes[one.shape] for one in self._usable], np.int32)

    def __len__(self) -> int:
        """Return the number of usable samples."""
        return len(self._usable)

    def bucket(self, number: int) -> Bucket:
        """Return height and width of a row's latents."""
        height, width = self._sizes[number].tolist()
        return height, width

    def row(self, number: int) -> dict[str, Tensor]:
        """See `CachedSamples.row`."""
        return self.rows([number])[0]

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return several rows, which is faster than one by one because they share batches."""
        rows = self._encoder.encode([self._sample(number) for number in numbers])
        for one in rows:
            if not isinstance(one, CacheRow):
                raise DataError(f"{one.name}: {one.reason}; it could be read when the run began")
        return [dict(one.tensors) for one in rows if isinstance(one, CacheRow)]

    def caption(self, number: int) -> str:
        """Return a sample's text."""
        return self._sample(number).text

    def key(self, number: int) -> bytes:
        """Return a sample's `Sample.key`."""
        return self._sample(number).key

    def thumbnails(self, number: int) -> UInt8[Tensor, "references 64 64 3"]:
        """Return the encoder's view of a sample's references, small."""
        sample = self._sample(number)
        return decode_thumbnails(self._encoder.encode_thumbnails(self._encoder.decode_sample(sample)))

    def _sample(self, number: int) -> Sample:
        sample = next(iter(self._usable[number].part.samples()))
        if isinstance(sample, Unreadable):
            raise DataError(f"{sample.name}: {sample.reason}; it could be read when the run began")
        return sample
