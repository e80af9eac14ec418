"""Samples that nothing is kept of: computed anew whenever they are asked for, in place of a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from imprompt.errors import DataError, ImageError, OutputError
from imprompt.training.cache.encoding import Row, RowEncoder, blanks_of, picture_digest
from imprompt.training.cache.making import Progress
from imprompt.training.cache.reading import (
    Bucket,
    by_bucket,
    decoded_thumbnails,
    digest_of,
    with_face_blank,
)
from imprompt.training.cache.skipping import none_left, refusal, too_many, write_skipped
from imprompt.training.cache.split import arrange
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import FrozenBase
from imprompt.training.samples import Part, Sample, Unreadable, open_source

SKIPPED_FILE = "skipped.jsonl"
"""In the run's folder: samples that cannot be used."""


class _Known(NamedTuple):
    """A sample that can be used: where it is, its key, its picture's digest, the shape of its target."""

    part: Part
    key: bytes
    picture: bytes
    shape: torch.Size


class LiveSamples:
    """As `CachedSamples`, without a cache: its rows are equal to those that a cache would hold.

    To begin with, all pictures are decoded once: which of them cannot be used, which are held out and which
    sizes there are must be known. It is for the process that has the models, not for a loader's workers.

    Args:
        config: with `cache.enabled` false
        frozen: the models
        on_progress: told how many samples of a source have been looked through, of how many

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
        self._known = self._look_through(config.data.source, on_progress)
        first = len(self._known)
        if isinstance(config.data.held_out, str):
            self._known += self._look_through(config.data.held_out, on_progress)
        pictures = np.frombuffer(b"".join(one.picture for one in self._known), np.uint8).reshape(-1, 32)
        self.train, self.held_out = arrange(pictures, first, config.data)
        keys = np.frombuffer(b"".join(one.key for one in self._known), np.uint8).reshape(-1, 32)
        self.digest = digest_of(keys[self.train], keys[self.held_out])
        self._sizes = self._latent_sizes(frozen)
        self.buckets = by_bucket(self.train, self._sizes)
        self.blanks = with_face_blank(blanks_of(config, frozen), self.row(0))

    def _look_through(self, source: str, on_progress: Progress) -> list[_Known]:
        """Decode all samples of a source; a part of it is one sample here."""
        parts = open_source(source, self._config.data, 1)
        known: list[_Known] = []
        for done, part in enumerate(parts, start=1):
            found = self._look_at(part)
            if isinstance(found, _Known):
                known.append(found)
            else:
                self._skip(found, done - len(known), len(parts), source)
            on_progress(done, len(parts))
        if not known:
            raise none_left(self.skipped[-1], source)
        return known

    def _look_at(self, part: Part) -> _Known | Unreadable:
        sample = next(iter(part.samples()))
        if isinstance(sample, Unreadable):
            return sample
        try:
            return _Known(part, sample.key, picture_digest(sample), self._encoder.see(sample).pixels.shape)
        except ImageError as error:
            return Unreadable(sample.name, str(error))

    def _skip(self, one: Unreadable, skipped: int, total: int, source: str) -> None:
        self.skipped.append(one)
        path = _made(Path(self._config.output)) / SKIPPED_FILE
        write_skipped(path, self.skipped)
        if too_many(skipped, total):
            raise refusal(self.skipped[-skipped:], total, source, path)

    def _latent_sizes(self, frozen: FrozenBase) -> np.ndarray:
        shapes = {one.shape for one in self._known}
        sizes = {shape: frozen.moments(torch.zeros(1, *shape)).shape[-2:] for shape in shapes}
        return np.array([sizes[one.shape] for one in self._known], np.int32)

    def __len__(self) -> int:
        """How many samples can be used."""
        return len(self._known)

    def bucket(self, number: int) -> Bucket:
        """Height and width of a row's latents."""
        height, width = self._sizes[number].tolist()
        return height, width

    def row(self, number: int) -> dict[str, Tensor]:
        """See `CachedSamples.row`."""
        return self.rows([number])[0]

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several: faster than one by one, for they share batches."""
        made = self._encoder.rows([self._sample(number) for number in numbers])
        for one in made:
            if not isinstance(one, Row):
                raise DataError(f"{one.name}: {one.reason}; it could be read when the run began")
        return [dict(one.tensors) for one in made if isinstance(one, Row)]

    def caption(self, number: int) -> str:
        """A sample's text."""
        return self._sample(number).text

    def key(self, number: int) -> bytes:
        """A sample's `Sample.key`."""
        return self._sample(number).key

    def thumbnails(self, number: int) -> UInt8[Tensor, "references 64 64 3"]:
        """What the image encoder sees of a sample's references, small."""
        sample = self._sample(number)
        return decoded_thumbnails(self._encoder.thumbnails(self._encoder.see(sample)))

    def _sample(self, number: int) -> Sample:
        sample = next(iter(self._known[number].part.samples()))
        if isinstance(sample, Unreadable):
            raise DataError(f"{sample.name}: {sample.reason}; it could be read when the run began")
        return sample


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    return folder
