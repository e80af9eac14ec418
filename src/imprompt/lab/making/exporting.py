"""The characters as training data for `imprompt train`: pictures, captions, and references that differ.

A sample's reference is the picture itself, or the same character with one change that the caption names:
another ground, style, expression, pair of glasses, beard or clothes. So an adapter learns to preserve what
the text does not mention, and to follow the text where it does. Half of the samples that are their own
reference have no caption.
"""

import io
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from imprompt.checkpoint import load_embedded_recognizer
from imprompt.errors import ConfigError, OutputError
from imprompt.lab.making.captions import sample_caption, write_attribute_phrase, write_style_phrase
from imprompt.lab.making.characters import (
    Character,
    Split,
    change_attributes,
    change_style,
    sample_character,
    sample_word,
)
from imprompt.lab.making.dataset import BLOCK
from imprompt.lab.making.drawing import SIZE, draw
from imprompt.lab.making.views import sample_person
from imprompt.lab.making.vocabulary import load_vocabulary
from imprompt.training.samples.layouts import EncodedSample, Layout, write_samples

CHANGES = {
    "": 0.5,
    "ground": 0.14,
    "style": 0.14,
    "expression": 0.08,
    "glasses": 0.08,
    "clothes": 0.03,
    "beard": 0.03,
}
"""The difference between reference and target, with its frequency; "" for none."""

SampleTask = tuple[int, Split, int, int, int]
"""Seed, split, first place, number of samples, size in pixels."""

UNCAPTIONED_SHARE = 0.5
"""The share without a caption, of the samples that are their own reference."""


def export_samples(
    output: Path, *, layout: Layout, count: int, held_out: int, seed: int, size: int = SIZE
) -> None:
    """Write `count` training samples to `output`, and `held_out` of unseen combinations to `output`-held-out.

    Both folders are written whole or not at all.

    Raises:
        OutputError: a folder of that name exists, or cannot be written
        ConfigError: there is less than one sample
        MissingExtra: the drawing libraries (`imprompt[draw]`) are not installed
    """
    write_both(
        output,
        lambda split, number: draw_samples(split, number, seed, size),
        layout=layout,
        count=count,
        held_out=held_out,
    )


def write_both(
    output: Path,
    draw: Callable[[Split, int], Iterable[EncodedSample]],
    *,
    layout: Layout,
    count: int,
    held_out: int,
) -> None:
    """Write samples for training to `output`, and of unseen combinations to `output`-held-out.

    Raises:
        OutputError, ConfigError: as `export_samples`
    """
    if count < 1 or held_out < 1:
        raise ConfigError(f"there must be at least one sample of each kind, not {count} and {held_out}")
    folders = output, output.with_name(f"{output.name}-held-out")
    for folder in folders:
        if folder.exists():
            raise OutputError(f"{folder} cannot be written: it is there already; delete it or name another")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            parts = Path(scratch, "training"), Path(scratch, "held-out")
            splits: tuple[Split, Split] = "training", "combinations"
            for split, part, number in zip(splits, parts, (count, held_out), strict=True):
                part.mkdir()
                write_samples(draw(split, number), part, layout)
            for part, folder in reversed(list(zip(parts, folders, strict=True))):
                shutil.move(part, folder)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error


EMBEDDED_AT_ONCE = 64
"""The number of faces that the recognizer reads at once."""


def export_people(
    output: Path,
    model: Path,
    *,
    layout: Layout,
    count: int,
    held_out: int,
    seed: int,
    size: int = SIZE,
) -> None:
    """Write samples for face adapters: another view of a person is the reference, and its face is embedded.

    Args:
        model: folder of the model whose recognizer embeds faces
        output, layout, count, held_out, seed, size: as of `export_samples`

    Raises:
        OutputError, ConfigError, MissingExtra: as `export_samples`
        UnknownModel: the folder holds no recognizer
    """
    embedder = load_embedded_recognizer(model)

    def draw_people(split: Split, number: int) -> Iterator[EncodedSample]:
        samples = draw_samples(split, number, seed, size, draw_people_block)
        while block := list(itertools.islice(samples, EMBEDDED_AT_ONCE)):
            pictures = [Image.open(io.BytesIO(sample.reference or b"")).convert("RGB") for sample in block]
            faces = embedder.embed(pictures).numpy()
            yield from (sample._replace(face=face) for sample, face in zip(block, faces, strict=True))

    write_both(output, draw_people, layout=layout, count=count, held_out=held_out)


def draw_samples(
    split: Split, count: int, seed: int, size: int = SIZE, draw: Callable[[SampleTask], Any] | None = None
) -> Iterator[EncodedSample]:
    """Yield samples of a split, drawn on all cores, each a pure function of (seed, split, place)."""
    tasks = [(seed, split, start, min(BLOCK, count - start), size) for start in range(0, count, BLOCK)]
    with ProcessPoolExecutor() as pool:
        for block in track(pool.map(draw or draw_block, tasks), description=split, total=len(tasks)):
            yield from block


def draw_people_block(task: SampleTask) -> list[EncodedSample]:
    """Draw consecutive samples of people."""
    seed, split, start, count, size = task
    rngs = (random.Random(f"{seed}/people/samples/{split}/{place}") for place in range(start, start + count))
    return [draw_person(rng, split, size) for rng in rngs]


def draw_person(rng: random.Random, split: Split, size: int) -> EncodedSample:
    """Draw two views of a person; the caption is that of the first, the second is the reference."""
    target, reference, *_ = sample_person(rng, split)
    caption = sample_caption(target, rng)
    return EncodedSample(encode_png(draw(target, size)), caption, encode_png(draw(reference, size)))


def draw_block(task: SampleTask) -> list[EncodedSample]:
    """Draw consecutive samples."""
    seed, split, start, count, size = task
    rngs = (random.Random(f"{seed}/samples/{split}/{place}") for place in range(start, start + count))
    return [draw_sample(rng, split, size) for rng in rngs]


def draw_sample(rng: random.Random, split: Split, size: int) -> EncodedSample:
    """Draw and encode one sample."""
    target = sample_character(rng, split)
    change = rng.choices(list(CHANGES), list(CHANGES.values()))[0]
    reference = change_character(target, change, rng, split)
    if reference is None:
        caption = "" if rng.random() < UNCAPTIONED_SHARE else sample_caption(target, rng)
        return EncodedSample(encode_png(draw(target, size)), caption, None)
    caption = caption_change(target, change, rng)
    return EncodedSample(encode_png(draw(target, size)), caption, encode_png(draw(reference, size)))


def change_character(
    character: Character, change: str, rng: random.Random, split: Split = "training"
) -> Character | None:
    """Return the same character with one attribute, or the style, changed; None where that is impossible."""
    vocabulary = load_vocabulary()
    if change == "style" and "robot" not in character.attributes:
        other = rng.choice([name for name in vocabulary.trained_styles if name != character.style])
        changed = change_style(character, other, rng)
    elif change in character.attributes:
        words = [
            word for word in vocabulary.styles[character.style].words(change) if word != character[change]
        ]
        if not words:
            return None
        changed = change_attributes(character, {change: sample_word(change, tuple(words), rng)}, rng)
    else:
        return None
    return changed if changed and (split != "training" or not changed.is_held_out) else None


def caption_change(target: Character, change: str, rng: random.Random) -> str:
    """Write a caption that names what the reference does not show."""
    phrase = (
        write_style_phrase(target) if change == "style" else write_attribute_phrase(change, target[change])
    )
    caption = sample_caption(target, rng) if rng.random() < 0.5 else ""
    return caption if phrase in caption else ", ".join(filter(None, (caption, phrase)))


def encode_png(picture: Image.Image) -> bytes:
    """Encode a picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
