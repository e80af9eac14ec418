"""Writing samples in the layouts that `imprompt train` reads; every layout holds the same bytes.

    folder      000000000.png  000000000.txt  (000000000.reference.png)
    official    data.json, a list of {"image_file", "text", ("reference")}, and the images next to it
    webdataset  00000.tar ...: 10,000 samples each of .png, .txt, .json (and .reference.png), named as
                img2dataset names them

A face embedding is one more file, `.face.npy`, or in the official list the key "face". The official script's
list has no references and no faces; it ignores these keys.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Layout = Literal["folder", "official", "webdataset"]

TAR_SAMPLES = 10_000
"""Samples per tar file, the default of img2dataset."""


class EncodedSample(NamedTuple):
    """A sample as files hold it; without a `reference` the image itself is the image prompt.

    Attributes:
        face: the embedding of the face in the image prompt, "d", float32
    """

    image: bytes
    text: str
    reference: bytes | None
    face: np.ndarray | None = None


def write_samples(samples: Iterable[EncodedSample], folder: Path, layout: Layout) -> None:
    """Write samples into an existing folder.

    Raises:
        OSError: the folder cannot be written
    """
    _WRITERS[layout](iter(samples), folder)


def _write_folder(pictures: Iterator[EncodedSample], folder: Path) -> None:
    for number, picture in enumerate(pictures):
        _write_pictures(picture, folder, f"{number:09d}")
        if picture.face is not None:
            (folder / f"{number:09d}.face.npy").write_bytes(_encode_array(picture.face))
        (folder / f"{number:09d}.txt").write_text(picture.text, encoding="utf-8")


def _write_official(pictures: Iterator[EncodedSample], folder: Path) -> None:
    rows: list[Mapping[str, Any]] = []
    for number, picture in enumerate(pictures):
        names = _write_pictures(picture, folder, f"{number:09d}")
        more: dict[str, Any] = {"reference": names[1]} if picture.reference else {}
        more |= {} if picture.face is None else {"face": picture.face.tolist()}
        rows.append({"image_file": names[0], "text": picture.text, **more})
    (folder / "data.json").write_text(json.dumps(rows, indent=0, ensure_ascii=False), encoding="utf-8")


def _write_pictures(picture: EncodedSample, folder: Path, key: str) -> tuple[str, str]:
    names = f"{key}.png", f"{key}.reference.png"
    (folder / names[0]).write_bytes(picture.image)
    if picture.reference:
        (folder / names[1]).write_bytes(picture.reference)
    return names


def _write_tars(pictures: Iterator[EncodedSample], folder: Path) -> None:
    shards: list[tarfile.TarFile] = []
    try:
        for number, picture in enumerate(pictures):
            if number % TAR_SAMPLES == 0:
                shards = _next_shard(shards, folder / f"{number // TAR_SAMPLES:05d}.tar")
            for suffix, content in _members(picture, f"{number:09d}"):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                shards[-1].addfile(member, io.BytesIO(content))
    finally:
        for shard in shards:
            shard.close()


def _next_shard(open_shards: list[tarfile.TarFile], path: Path) -> list[tarfile.TarFile]:
    for shard in open_shards:
        shard.close()
    return [tarfile.open(path, "w")]


def _members(picture: EncodedSample, key: str) -> Iterator[tuple[str, bytes]]:
    """Yield the suffixes and contents of a sample's files in a tar."""
    yield "png", picture.image
    yield "txt", picture.text.encode()
    yield "json", json.dumps({"key": key, "caption": picture.text, "status": "success"}).encode()
    if picture.reference:
        yield "reference.png", picture.reference
    if picture.face is not None:
        yield "face.npy", _encode_array(picture.face)


def _encode_array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_WRITERS: Mapping[Layout, Callable[[Iterator[EncodedSample], Path], None]] = {
    "folder": _write_folder,
    "official": _write_official,
    "webdataset": _write_tars,
}
