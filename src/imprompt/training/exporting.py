"""The embedded model's drawings as ordinary training data: pictures on grounds, with captions, in files.

What `EmojiBatches` draws for a step is here written once, so that `imprompt train` has raw pictures to begin
with. Every layout holds the same bytes in the same order:

    folder      000000000.png  000000000.txt  (000000000.reference.png)
    official    data.json, a list of {"image_file", "text", ("reference")}, and the pictures beside it
    webdataset  00000.tar ...: 10,000 samples each of .png, .txt, .json (and .reference.png), named as
                img2dataset names them

The official script's list has no references; it ignores that key.
"""

import io
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from torch import Tensor

from imprompt.errors import ConfigError, OutputError
from imprompt.training.data import EmojiBatches, EmojiPictures, Scene
from imprompt.training.recipe import Mixture

Layout = Literal["folder", "official", "webdataset"]

TAR_SAMPLES = 10_000
"""Samples in a tar file, img2dataset's default."""

MIXTURE = Mixture(placed=0.03, paired=0.03, changed_ground=0.5, nameless=0.15)
"""How scenes are drawn. A caption that names the ground alone leaves the thing to the image prompt."""


class Picture(NamedTuple):
    """One sample, encoded; `reference` is None if the picture itself is to be the image prompt."""

    image: bytes
    text: str
    reference: bytes | None


def export_pictures(data_folder: Path, output: Path, *, layout: Layout, variants: int, seed: int) -> int:
    """Write the training side of the drawings to `output`, the held-out side to `output`-held-out.

    Both folders appear whole or not at all.

    Args:
        data_folder: as `imprompt mini build-data` wrote it
        output: a folder that is not there yet
        layout: how the files are laid out, see above
        variants: how often each training drawing comes, each time in another scene; a held-out one comes once
        seed: of the order and the scenes

    Returns:
        how many training pictures there are

    Raises:
        OutputError: a folder of that name is there already, or cannot be written
        ConfigError: no drawings in `data_folder`, or fewer than one variant
    """
    if variants < 1:
        raise ConfigError(f"variants is {variants}; each drawing must come at least once")
    held_out = output.with_name(f"{output.name}-held-out")
    for folder in (output, held_out):
        if folder.exists():
            raise OutputError(f"{folder} cannot be written: it is there already; delete it or name another")
    sides = EmojiPictures(data_folder), EmojiPictures(data_folder, held_out=True)
    try:
        with tempfile.TemporaryDirectory(dir=_made(output.parent)) as scratch:
            parts = Path(scratch, "training"), Path(scratch, "held-out")
            for side, part, count in zip(sides, parts, (variants, 1), strict=True):
                part.mkdir()
                _WRITERS[layout](draw_pictures(side, count, seed), part)
            shutil.move(parts[1], held_out)
            shutil.move(parts[0], output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error
    return len(sides[0]) * variants


def draw_pictures(pictures: EmojiPictures, variants: int, seed: int) -> Iterator[Picture]:
    """Every drawing in `variants` scenes, all drawings once before any comes again."""
    batches = EmojiBatches(pictures, 1, seed=seed, mixture=MIXTURE)
    for variant in range(variants):
        for row in batches.order(variant):
            scene = batches.scene(int(row), random.Random(f"{seed}/{variant}/{row}"))
            yield _draw(batches, scene)


def _draw(batches: EmojiBatches, scene: Scene) -> Picture:
    if scene.place or scene.neighbour is not None:
        return Picture(_png(batches.compose(scene)), scene.caption, None)
    on_ground = batches.pictures.on_ground
    image = _png(on_ground([scene.row], scene.colour)[0])
    if scene.reference_colour is scene.colour:
        return Picture(image, scene.caption, None)
    reference = _png(on_ground([scene.row], scene.reference_colour)[0])
    return Picture(image, scene.caption, None if reference == image else reference)


def _png(pixels: Tensor) -> bytes:
    """Encode "3 height width" from -1 to 1."""
    values = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def _write_folder(pictures: Iterator[Picture], folder: Path) -> None:
    for number, picture in enumerate(pictures):
        _write_pictures(picture, folder, f"{number:09d}")
        (folder / f"{number:09d}.txt").write_text(picture.text, encoding="utf-8")


def _write_official(pictures: Iterator[Picture], folder: Path) -> None:
    rows: list[Mapping[str, str]] = []
    for number, picture in enumerate(pictures):
        names = _write_pictures(picture, folder, f"{number:09d}")
        reference = {"reference": names[1]} if picture.reference else {}
        rows.append({"image_file": names[0], "text": picture.text, **reference})
    (folder / "data.json").write_text(json.dumps(rows, indent=0, ensure_ascii=False), encoding="utf-8")


def _write_pictures(picture: Picture, folder: Path, key: str) -> tuple[str, str]:
    names = f"{key}.png", f"{key}.reference.png"
    (folder / names[0]).write_bytes(picture.image)
    if picture.reference:
        (folder / names[1]).write_bytes(picture.reference)
    return names


def _write_tars(pictures: Iterator[Picture], folder: Path) -> None:
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


def _members(picture: Picture, key: str) -> Iterator[tuple[str, bytes]]:
    """The files of a sample in a tar, by suffix."""
    yield "png", picture.image
    yield "txt", picture.text.encode()
    yield "json", json.dumps({"key": key, "caption": picture.text, "status": "success"}).encode()
    if picture.reference:
        yield "reference.png", picture.reference


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_WRITERS: Mapping[Layout, Callable[[Iterator[Picture], Path], None]] = {
    "folder": _write_folder,
    "official": _write_official,
    "webdataset": _write_tars,
}
