"""Samples → rows: everything that the frozen models compute of a sample before training begins.

A row is a function of its sample alone, to the last bit. Images and captions go through the models in batches
of one size, at a place that follows from their content, so that the grouping of samples does not matter. On
the CPU they use one thread, so that the order of sums does not depend on the load of the machine.
"""

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imprompt.attention.choices import NO_IMAGE
from imprompt.errors import DataError, ImageError
from imprompt.inputs.choices import Input
from imprompt.inputs.crop import encoder_view
from imprompt.inputs.image import decode_image
from imprompt.runtime.foreign_models import log_errors_only
from imprompt.runtime.threads import compute_on_one_thread
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import DTYPES, FrozenBase
from imprompt.training.samples import Sample, Unreadable
from imprompt.training.targets import make_mask, make_target

THUMBNAIL = 64
"""Side in pixels of the thumbnails in sample grids."""

_LONGEST_QUEUE = 4
"""Largest number of decoded items that wait for one place of a batch; then it runs with other places
empty."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class CacheRow:
    """A sample as training reads it.

    Attributes:
        key: the sample's `Sample.key`
        picture: SHA-256 of the target's file; samples that share it are on the same side of the split
        caption: the text
        thumbnails: for each reference the image encoder's view of it, as JPEG
        tensors: "moments", "text_embeddings", ...: see `CachedSamples.row`
    """

    key: bytes
    picture: bytes
    caption: str
    thumbnails: tuple[bytes, ...]
    tensors: Mapping[str, Tensor]


class CacheRecipe(NamedTuple):
    """Everything but the samples that determines the rows of a cache."""

    entries: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the entries; caches with the same one may be mixed."""
        return hashlib.sha256(json.dumps(self.entries, sort_keys=True).encode()).hexdigest()


def make_recipe(config: TrainingConfig, frozen: FrozenBase) -> CacheRecipe:
    """Collect the encoders' fingerprints and the settings of cropping."""
    data, takes = config.data, config.takes
    encoders = dict(frozen.fingerprints())
    if not config.needs_encoder:
        del encoders["image_encoder"]
    if config.cache.text == "captions":
        del encoders["text_encoder"]
    return CacheRecipe(
        {
            "format": 1,
            "encoders": encoders,
            "inputs": list(takes),
            "size": data.size,
            "buckets": [data.bucket_step, data.longest] if data.buckets else None,
            # The spelling of the first caches, so that they are found again.
            "reference crop": {"center": "centre"}.get(data.reference_crop, data.reference_crop),
            "size condition": frozen.needs_size,
            "text": config.cache.text,
            "precision": config.cache.precision,
        }
    )


def encode_blanks(config: TrainingConfig, frozen: FrozenBase) -> dict[Input, Tensor]:
    """Encode what replaces a dropped image, in float32; of faces only the data know the width."""
    names: list[Input] = [name for name in config.takes if name != "face_embedding"]
    no_image = NO_IMAGE[config.adapter.injection]
    return {name: frozen.blank(name, no_image).float().cpu().contiguous() for name in names}


def hash_picture(sample: Sample) -> bytes:
    """Return the SHA-256 of the target's file."""
    return _hash(sample.image)


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class ContentBatcher(Generic[Item]):
    """Collects items of one shape for batches, and the result of each.

    The place of an item in its batch follows from its content, because matrix products sum in a different
    order at their edges. An empty place is filled with a copy of another item. That costs about a sixth more
    batches.

    Args:
        size: items of a batch
        work: items → tensors, "size ..."
    """

    def __init__(self, size: int, work: Callable[[list[Item]], Mapping[str, Tensor]]) -> None:
        self._size, self._work = size, work
        self._waiting: dict[Hashable, list[deque[tuple[Hashable, Item]]]] = {}
        self._results: dict[Hashable, dict[str, Tensor]] = {}

    def add(self, name: Hashable, item: Item, digest: bytes, shape: Hashable = None) -> None:
        """Add an item with the digest of its content; items share a batch if their `shape` is equal."""
        if shape not in self._waiting:
            self._waiting[shape] = [deque() for _ in range(self._size)]
        places = self._waiting[shape]
        place = places[int.from_bytes(digest[:8], "little") % self._size]
        place.append((name, item))
        if all(places) or len(place) == _LONGEST_QUEUE:
            self._run(places)

    def finish(self) -> dict[Hashable, dict[str, Tensor]]:
        """Return the result of each item, by name."""
        for places in self._waiting.values():
            while any(places):
                self._run(places)
        return self._results

    def _run(self, places: Sequence[deque[tuple[Hashable, Item]]]) -> None:
        batch = [place.popleft() if place else None for place in places]
        filling = next(one[1] for one in batch if one is not None)
        outputs = self._work([filling if one is None else one[1] for one in batch])
        for row, one in enumerate(batch):
            if one is not None:
                self._results[one[0]] = {name: values[row] for name, values in outputs.items()}


class DecodedSample(NamedTuple):
    """A decoded sample: the target, its references, and what is small enough to keep."""

    pixels: Tensor
    size_condition: tuple[int, ...]
    references: list[Image.Image]
    mask: Tensor | None


class RowEncoder:
    """Encodes samples as rows.

    Args:
        frozen: the models that encode
        config: crops, cached tensors and their precision
    """

    def __init__(self, frozen: FrozenBase, config: TrainingConfig) -> None:
        self.frozen, self.config = frozen, config
        self._dtype = DTYPES[config.cache.precision]
        self._takes = config.takes

    def encode(self, samples: Iterable[Sample]) -> list[CacheRow | Unreadable]:
        """Encode samples, in order; images that cannot be decoded become `Unreadable`, in their place.

        Raises:
            DataError: a value that the cache's precision cannot hold
        """
        with compute_on_one_thread(self.frozen.device), log_errors_only("diffusers", "transformers"):
            return self._encode(samples)

    def _encode(self, samples: Iterable[Sample]) -> list[CacheRow | Unreadable]:
        size = self.config.cache.batch_size
        targets = ContentBatcher[Tensor](size, self._moments)
        references = ContentBatcher[Image.Image](size, self._inputs)
        texts = ContentBatcher[str](size, self._text)
        started: list[tuple[CacheRow, list[tuple[int, int]]] | Unreadable] = []
        for place, sample in enumerate(samples):
            try:
                decoded = self.decode_sample(sample)
            except ImageError as error:
                started.append(Unreadable(sample.name, str(error)))
                continue
            targets.add(place, decoded.pixels, hash_picture(sample), decoded.pixels.shape)
            if self.config.cache.text == "states":
                texts.add(place, sample.text, _hash(sample.text.encode()))
            places = [(place, number) for number in range(len(decoded.references))]
            if self.config.needs_encoder:
                files = sample.references or [sample.image]
                for where, picture, file in zip(places, decoded.references, files, strict=True):
                    references.add(where, picture, _hash(file))
            started.append((self._start_row(sample, decoded), places))
        outputs, inputs, words = targets.finish(), references.finish(), texts.finish()
        return [
            one
            if isinstance(one, Unreadable)
            else _complete_row(
                one[0], {**outputs[place], **words.get(place, {})}, [inputs[p] for p in one[1] if p in inputs]
            )
            for place, one in enumerate(started)
        ]

    def decode_sample(self, sample: Sample) -> DecodedSample:
        """Decode the images of a sample and crop the target.

        Raises:
            ImageError: one cannot be decoded, or there is no face embedding where one is needed; the message
                is a phrase without the sample's name
        """
        if "face_embedding" in self._takes and sample.face is None:
            column = self.config.data.columns.face
            raise ImageError(f"it has no face embedding (data.columns.face is {column!r})")
        picture = decode_image(sample.image, "its picture")
        target = make_target(picture, self.config.data)
        references = [decode_image(data, "its reference") for data in sample.references]
        mask = None
        if sample.mask is not None:
            mask = make_mask(decode_image(sample.mask, "its mask"), picture.size, self.config.data)
        return DecodedSample(target.pixels, target.size_condition, references or [picture], mask)

    def _start_row(self, sample: Sample, decoded: DecodedSample) -> CacheRow:
        """Return the row without what batches compute."""
        tensors: dict[str, Tensor] = {}
        if self.frozen.needs_size:
            tensors["size_condition"] = torch.tensor(decoded.size_condition)
        if decoded.mask is not None:
            tensors["mask"] = decoded.mask
        if "face_embedding" in self._takes and sample.face is not None:
            face = torch.from_numpy(sample.face.copy()).to(self._dtype)
            tensors["face_embedding"] = face.expand(len(decoded.references), -1)
        return CacheRow(
            sample.key, hash_picture(sample), sample.text, tuple(self.encode_thumbnails(decoded)), tensors
        )

    def encode_thumbnails(self, decoded: DecodedSample) -> list[bytes]:
        """Return the encoder's view of each reference as a small JPEG."""
        crop = self.config.data.reference_crop
        return [_jpeg(encoder_view(picture, THUMBNAIL, crop)) for picture in decoded.references]

    def _moments(self, pixels: list[Tensor]) -> dict[str, Tensor]:
        return self._to_cache_precision({"moments": self.frozen.encode_targets(torch.stack(pixels))})

    def _text(self, captions: list[str]) -> dict[str, Tensor]:
        return self._to_cache_precision(self.frozen.encode_text(captions))

    def _inputs(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        names: list[Input] = [name for name in self._takes if name != "face_embedding"]
        crop = self.config.data.reference_crop
        return self._to_cache_precision({**self.frozen.encode_references(pictures, names, crop)})

    def _to_cache_precision(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert to the cache's precision, on the CPU."""
        converted = {name: values.to("cpu", self._dtype) for name, values in tensors.items()}
        for name, values in converted.items():
            if values.isnan().any() or (values == torch.inf).any():
                raise DataError(
                    f"{name} holds numbers that {self.config.cache.precision} cannot; set cache.precision"
                )
        return converted


def _complete_row(
    row: CacheRow, outputs: Mapping[str, Tensor], inputs: Sequence[Mapping[str, Tensor]]
) -> CacheRow:
    """Add what batches computed; a mask shrinks to the size of the latents."""
    stacked = {name: torch.stack([one[name] for one in inputs]) for name in (inputs[0] if inputs else ())}
    tensors = {**row.tensors, **outputs, **stacked}
    if "mask" in tensors:
        shape = outputs["moments"].shape[-2:]
        shrunk = F.interpolate(tensors["mask"][None], shape, mode="area")[0]
        tensors["mask"] = shrunk.to(outputs["moments"].dtype)
    return CacheRow(row.key, row.picture, row.caption, row.thumbnails, tensors)


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()
