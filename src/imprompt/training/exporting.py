"""The embedded model's drawings as ordinary training data: pictures on grounds, with captions, in files.

What `EmojiBatches` draws for a step is here written once, so that `imprompt train` has raw pictures to begin
with.
"""

import io
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from imprompt.errors import ConfigError, OutputError
from imprompt.training.data import EmojiBatches, EmojiPictures, Scene
from imprompt.training.recipe import Mixture
from imprompt.training.samples.writing import EncodedSample, Layout, write_samples

MIXTURE = Mixture(placed=0.03, paired=0.03, changed_ground=0.5, nameless=0.15)
"""How scenes are drawn. A caption that names the ground alone leaves the thing to the image prompt."""


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
                write_samples(draw_pictures(side, count, seed), part, layout)
            shutil.move(parts[1], held_out)
            shutil.move(parts[0], output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error
    return len(sides[0]) * variants


def draw_pictures(pictures: EmojiPictures, variants: int, seed: int) -> Iterator[EncodedSample]:
    """Every drawing in `variants` scenes, all drawings once before any comes again."""
    batches = EmojiBatches(pictures, 1, seed=seed, mixture=MIXTURE)
    for variant in range(variants):
        for row in batches.order(variant):
            scene = batches.scene(int(row), random.Random(f"{seed}/{variant}/{row}"))
            yield _draw(batches, scene)


def _draw(batches: EmojiBatches, scene: Scene) -> EncodedSample:
    if scene.place or scene.neighbour is not None:
        return EncodedSample(_png(batches.compose(scene)), scene.caption, None)
    on_ground = batches.pictures.on_ground
    image = _png(on_ground([scene.row], scene.colour)[0])
    if scene.reference_colour is scene.colour:
        return EncodedSample(image, scene.caption, None)
    reference = _png(on_ground([scene.row], scene.reference_colour)[0])
    return EncodedSample(image, scene.caption, None if reference == image else reference)


def _png(pixels: Tensor) -> bytes:
    """Encode "3 height width" from -1 to 1."""
    values = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
