"""Rows ↔ a shard: one safetensors file, written atomically and read through a memory map.

    keys, pictures            "rows 32", uint8
    captions, thumbnails      bytes, end to end; `captions.ends`, `thumbnails.ends`: where each ends;
                              `thumbnails.rows`: how many references each row has
    NAME                      a row's tensor, flattened, end to end; `NAME.shapes`: the shape of each row's;
                              size 0 where a row has none

The same rows under the same name make the same bytes. The metadata hold the file's SHA-256, which
`Shard.check` compares: once when a run begins, not for each sample.
"""

import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from imprompt.errors import DataError
from imprompt.runtime.output import write_atomically
from imprompt.training.cache.encode import CacheRow
from imprompt.training.integrity import DIGEST_KEY, add_digest, hash_tensors

_NUMPY = {"U8": "u1", "I64": "<i8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors' types in numpy; bfloat16, which numpy lacks, as integers of the same bits."""

_METADATA = "imprompt"

_DAMAGE = OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError
"""Exceptions that a damaged header may cause."""


def write_shard(path: Path, rows: Sequence[CacheRow], skipped: Sequence[tuple[int, str]]) -> None:
    """Write rows; `skipped` lists the unusable samples among them, counted from 0, with reasons.

    Raises:
        OutputError: the file cannot be written
    """
    data = save(_pack(rows), {_METADATA: json.dumps({"skipped": skipped})})
    with write_atomically(path) as part:
        part.write_bytes(add_digest(data, path.stem))


def _pack(rows: Sequence[CacheRow]) -> dict[str, Tensor]:
    packed = {
        "keys": _stack_digests([row.key for row in rows]),
        "pictures": _stack_digests([row.picture for row in rows]),
    }
    packed |= _join("captions", [row.caption.encode() for row in rows])
    packed |= _join("thumbnails", [picture for row in rows for picture in row.thumbnails])
    packed["thumbnails.rows"] = torch.tensor([len(row.thumbnails) for row in rows], dtype=torch.int64)
    for name in dict.fromkeys(name for row in rows for name in row.tensors):
        packed |= _flatten(name, [row.tensors.get(name) for row in rows])
    return packed


def _stack_digests(digests: Sequence[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(len(digests), -1)


def _join(name: str, strings: Sequence[bytes]) -> dict[str, Tensor]:
    joined = torch.from_numpy(np.frombuffer(b"".join(strings), np.uint8).copy())
    return {name: joined, f"{name}.ends": torch.tensor([len(one) for one in strings]).cumsum(0)}


def _flatten(name: str, tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
    there = [tensor for tensor in tensors if tensor is not None]
    none = [0] * there[0].ndim
    shapes = torch.tensor([none if tensor is None else list(tensor.shape) for tensor in tensors])
    return {name: torch.cat([tensor.reshape(-1) for tensor in there]), f"{name}.shapes": shapes}


class Shard:
    """A shard, read row by row.

    Args:
        path: the file

    Attributes:
        shapes: the shapes of every row's tensors, "rows axes"

    Raises:
        DataError: the file is missing or is not a shard
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read()
        except _DAMAGE as error:
            raise DataError(f"{path} is missing or damaged; delete it and run again: {error}") from error

    def _read(self) -> None:
        self._start = 8 + int.from_bytes(self._bytes[:8], "little")
        self._header: dict[str, Any] = json.loads(self._bytes[8 : self._start])
        about = self._header["__metadata__"]
        self._about: Mapping[str, Any] = json.loads(about[_METADATA])
        self._digest: str | None = about.get(DIGEST_KEY)
        entries = {name: entry for name, entry in self._header.items() if name != "__metadata__"}
        self._types = {name: entry["dtype"] for name, entry in entries.items()}
        self._arrays = {name: self._array(entry, self._start) for name, entry in entries.items()}
        self.keys, self.pictures = self._arrays["keys"], self._arrays["pictures"]
        self.shapes = {
            name.removesuffix(".shapes"): np.array(values)
            for name, values in self._arrays.items()
            if name.endswith(".shapes")
        }
        self._ends = {name: shapes.prod(axis=1).cumsum() for name, shapes in self.shapes.items()}

    @property
    def has_digest(self) -> bool:
        """Whether the file holds a digest; one of an earlier version of imprompt does not."""
        return self._digest is not None

    def check(self) -> None:
        """Compare the whole file with its digest, which takes about a second per gigabyte.

        Raises:
            DataError: it is not as it was written
        """
        with memoryview(self._bytes) as whole, whole[self._start :] as body:
            matches = self._digest in (None, hash_tensors(self._path.stem, self._header, body))
        if not matches:
            raise DataError(f"{self._path} is not as it was written; delete it and run again")

    def _array(self, entry: Mapping[str, Any], start: int) -> np.ndarray:
        first, last = entry["data_offsets"]
        dtype = np.dtype(_NUMPY[entry["dtype"]])
        count = (last - first) // dtype.itemsize
        return np.frombuffer(self._bytes, dtype, count, start + first).reshape(entry["shape"])

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def skipped(self) -> list[tuple[int, str]]:
        """The skipped samples: their places among those that could be read, and the reasons."""
        return [(place, reason) for place, reason in self._about["skipped"]]

    def tensors(self, row: int) -> dict[str, Tensor]:
        """Return copies of a row's tensors."""
        return {name: self._tensor(name, row) for name, shapes in self.shapes.items() if shapes[row].all()}

    def _tensor(self, name: str, row: int) -> Tensor:
        shape, end = self.shapes[name][row].tolist(), int(self._ends[name][row])
        start = int(self._ends[name][row - 1]) if row else 0
        values = torch.from_numpy(np.array(self._arrays[name][start:end])).reshape(shape)
        return values.view(torch.bfloat16) if self._types[name] == "BF16" else values

    def caption(self, row: int) -> str:
        """Return the text of a row."""
        return self._string("captions", row).decode()

    def thumbnails(self, row: int) -> list[bytes]:
        """Return a row's references as small JPEG files."""
        counts = self._arrays["thumbnails.rows"]
        first = int(counts[:row].sum())
        return [self._string("thumbnails", first + number) for number in range(int(counts[row]))]

    def _string(self, name: str, number: int) -> bytes:
        ends = self._arrays[f"{name}.ends"]
        return self._arrays[name][int(ends[number - 1]) if number else 0 : int(ends[number])].tobytes()
