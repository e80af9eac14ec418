"""Samples → rows: everything that frozen models can say of a sample before training begins.

What a row holds is a function of its sample alone, to the last bit: pictures and captions go through the
models in batches of one size, at a place that follows from their content, so that nothing depends on how
samples are grouped; and on the CPU with one thread, so that no order of sums depends on the machine's load.
"""

import contextlib
import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imprompt.errors import DataError, ImageError
from imprompt.inputs.crop import encoder_view
from imprompt.inputs.encoder import Input
from imprompt.inputs.image import decode_image
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen import DTYPES, TAKES, FrozenBase, quiet
from imprompt.training.samples import Sample, Unreadable
from imprompt.training.targets import make_mask, make_target

THUMBNAIL = 64
"""Side in pixels of the small pictures that sample grids show."""

_LONGEST_QUEUE = 4
"""How many items may wait for one place of a batch, decoded, before it runs with other places empty."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """A sample as training reads it.

    Attributes:
        key: the sample's
        picture: SHA-256 of the target's file: samples with the same one lie on the same side of the split
        caption: the text
        thumbnails: of each reference, what the image encoder sees of it, as JPEG
        tensors: "moments", "text_embeddings", ...: see `CachedSamples.row`
    """

    key: bytes
    picture: bytes
    caption: str
    thumbnails: tuple[bytes, ...]
    tensors: Mapping[str, Tensor]


class Recipe(NamedTuple):
    """Everything but the samples that rows follow from."""

    entries: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256; caches with the same one may be mixed."""
        return hashlib.sha256(json.dumps(self.entries, sort_keys=True).encode()).hexdigest()


def recipe_of(config: TrainingConfig, frozen: FrozenBase) -> Recipe:
    """Collect the encoders' weights and the settings of how pictures are cut."""
    data, takes = config.data, TAKES[config.adapter.variant]
    encoders = dict(frozen.fingerprints())
    if set(takes) == {"face_embedding"}:
        del encoders["image_encoder"]
    if config.cache.text == "captions":
        del encoders["text_encoder"]
    return Recipe(
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


def blanks_of(config: TrainingConfig, frozen: FrozenBase) -> dict[Input, Tensor]:
    """What stands for a dropped image, float32; but for faces, whose width only the data knows."""
    names: list[Input] = [name for name in TAKES[config.adapter.variant] if name != "face_embedding"]
    return {name: frozen.blank(name).float().cpu().contiguous() for name in names}


def picture_digest(sample: Sample) -> bytes:
    """SHA-256 of the target's file."""
    return _digest(sample.image)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Batches(Generic[Item]):
    """Collects items of one shape for batches, and keeps what becomes of each.

    The place of an item in its batch follows from its content, for matrix products sum in another order at
    their edges; an empty place is filled with a copy of another item. That costs about a sixth more batches.

    Args:
        size: of every batch
        work: items → tensors, "size ..."
    """

    def __init__(self, size: int, work: Callable[[list[Item]], Mapping[str, Tensor]]) -> None:
        self._size, self._work = size, work
        self._waiting: dict[Hashable, list[deque[tuple[Hashable, Item]]]] = {}
        self._made: dict[Hashable, dict[str, Tensor]] = {}

    def add(self, name: Hashable, item: Item, digest: bytes, shape: Hashable = None) -> None:
        """Take an item with the digest of its content; only those with the same `shape` share a batch."""
        if shape not in self._waiting:
            self._waiting[shape] = [deque() for _ in range(self._size)]
        places = self._waiting[shape]
        place = places[int.from_bytes(digest[:8], "little") % self._size]
        place.append((name, item))
        if all(places) or len(place) == _LONGEST_QUEUE:
            self._run(places)

    def finish(self) -> dict[Hashable, dict[str, Tensor]]:
        """What has become of each item, by its name."""
        for places in self._waiting.values():
            while any(places):
                self._run(places)
        return self._made

    def _run(self, places: Sequence[deque[tuple[Hashable, Item]]]) -> None:
        taken = [place.popleft() if place else None for place in places]
        filling = next(one[1] for one in taken if one is not None)
        made = self._work([filling if one is None else one[1] for one in taken])
        for row, one in enumerate(taken):
            if one is not None:
                self._made[one[0]] = {name: values[row] for name, values in made.items()}


class Seen(NamedTuple):
    """A sample, decoded: its target, what it may be prompted with, and what is small enough to keep."""

    pixels: Tensor
    size_condition: tuple[int, ...]
    references: list[Image.Image]
    mask: Tensor | None


class RowEncoder:
    """Makes rows of samples.

    Args:
        frozen: what they are shown to
        config: how pictures are cut, what is kept and in which precision
    """

    def __init__(self, frozen: FrozenBase, config: TrainingConfig) -> None:
        self.frozen, self.config = frozen, config
        self._dtype = DTYPES[config.cache.precision]
        self._takes = TAKES[config.adapter.variant]

    def rows(self, samples: Iterable[Sample]) -> list[Row | Unreadable]:
        """Encode samples, in order; pictures that cannot be decoded come as `Unreadable`, in their place.

        Raises:
            DataError: a value that the cache's precision cannot hold
        """
        with _one_thread(self.frozen.device), quiet("diffusers", "transformers"):
            return self._rows(samples)

    def _rows(self, samples: Iterable[Sample]) -> list[Row | Unreadable]:
        size = self.config.cache.batch_size
        targets = Batches[Tensor](size, self._moments)
        references = Batches[Image.Image](size, self._inputs)
        texts = Batches[str](size, self._text)
        begun: list[tuple[Row, list[tuple[int, int]]] | Unreadable] = []
        for place, sample in enumerate(samples):
            try:
                seen = self.see(sample)
            except ImageError as error:
                begun.append(Unreadable(sample.name, str(error)))
                continue
            targets.add(place, seen.pixels, picture_digest(sample), seen.pixels.shape)
            if self.config.cache.text == "states":
                texts.add(place, sample.text, _digest(sample.text.encode()))
            places = [(place, number) for number in range(len(seen.references))]
            if set(self._takes) != {"face_embedding"}:
                files = sample.references or [sample.image]
                for where, picture, file in zip(places, seen.references, files, strict=True):
                    references.add(where, picture, _digest(file))
            begun.append((self._begun(sample, seen), places))
        made, inputs, words = targets.finish(), references.finish(), texts.finish()
        return [
            one
            if isinstance(one, Unreadable)
            else _finished(
                one[0], {**made[place], **words.get(place, {})}, [inputs[p] for p in one[1] if p in inputs]
            )
            for place, one in enumerate(begun)
        ]

    def see(self, sample: Sample) -> Seen:
        """Decode a sample's pictures and cut the target.

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
        return Seen(target.pixels, target.size_condition, references or [picture], mask)

    def _begun(self, sample: Sample, seen: Seen) -> Row:
        """The row, but for what comes from batches."""
        tensors: dict[str, Tensor] = {}
        if self.frozen.needs_size:
            tensors["size_condition"] = torch.tensor(seen.size_condition)
        if seen.mask is not None:
            tensors["mask"] = seen.mask
        if "face_embedding" in self._takes and sample.face is not None:
            face = torch.from_numpy(sample.face.copy()).to(self._dtype)
            tensors["face_embedding"] = face.expand(len(seen.references), -1)
        return Row(sample.key, picture_digest(sample), sample.text, tuple(self.thumbnails(seen)), tensors)

    def thumbnails(self, seen: Seen) -> list[bytes]:
        """Of each reference, what the image encoder sees of it, small, as JPEG."""
        crop = self.config.data.reference_crop
        return [_jpeg(encoder_view(picture, THUMBNAIL, crop)) for picture in seen.references]

    def _moments(self, pixels: list[Tensor]) -> dict[str, Tensor]:
        return self._kept({"moments": self.frozen.moments(torch.stack(pixels))})

    def _text(self, captions: list[str]) -> dict[str, Tensor]:
        return self._kept(self.frozen.text(captions))

    def _inputs(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        names: list[Input] = [name for name in self._takes if name != "face_embedding"]
        crop = self.config.data.reference_crop
        return self._kept({**self.frozen.image_inputs(pictures, names, crop)})

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In the cache's precision, on the CPU."""
        kept = {name: values.to("cpu", self._dtype) for name, values in tensors.items()}
        for name, values in kept.items():
            if values.isnan().any() or (values == torch.inf).any():
                raise DataError(
                    f"{name} holds numbers that {self.config.cache.precision} cannot; set cache.precision"
                )
        return kept


def _finished(row: Row, made: Mapping[str, Tensor], inputs: Sequence[Mapping[str, Tensor]]) -> Row:
    """Add what came from batches; a mask shrinks to the latents' size."""
    stacked = {name: torch.stack([one[name] for one in inputs]) for name in (inputs[0] if inputs else ())}
    tensors = {**row.tensors, **made, **stacked}
    if "mask" in tensors:
        shape = made["moments"].shape[-2:]
        shrunk = F.interpolate(tensors["mask"][None], shape, mode="area")[0]
        tensors["mask"] = shrunk.to(made["moments"].dtype)
    return Row(row.key, row.picture, row.caption, row.thumbnails, tensors)


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Let torch compute with one thread on the CPU, as every worker process does."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
