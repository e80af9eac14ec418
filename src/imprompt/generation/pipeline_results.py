"""What a pipeline gives back, checked: pictures that are none are said, and never saved or measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from imprompt.errors import OutputError


def remove_safety_checker(pipe: Any) -> None:
    """Take a base's safety checker off, in place, where pictures are measured.

    It paints a picture black that it dislikes, and a black picture is no answer to a reference.
    """
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None


def call_pipeline(
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    seeds: Sequence[int] | None = None,
) -> list[Image.Image]:
    """Call a pipeline, and return its pictures if every one is what the model made.

    Args:
        call: a diffusers pipeline
        arguments: of its call
        seeds: what messages call the pictures; their numbers if not given

    Raises:
        OutputError: a picture that the safety checker painted black, or values that are not finite
    """
    with _watch_casts() as faults:
        made = call(**arguments)
    pictures = list(made.images)
    flags = getattr(made, "nsfw_content_detected", None) or []
    if black := [number for number, is_flagged in enumerate(flags) if is_flagged]:
        raise OutputError(
            f"{_named(black, seeds)} was painted black by the base's safety checker; try another seed or "
            "prompt, or take the checker off (pipe.safety_checker = None)"
        )
    if faults:
        black = [number for number, picture in enumerate(pictures) if not np.asarray(picture).any()]
        raise OutputError(
            f"{_named(black or [*range(len(pictures))], seeds)} holds values that are not finite (NaN): "
            "compute in float32 or bfloat16, or make the scale smaller"
        )
    return pictures


def call_pipeline_by_rows(
    call: Callable[[slice, dict[str, Any]], list[Image.Image]],
    arguments: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda pictures: None,
) -> list[Image.Image]:
    """Call a pipeline for rows that each have a seed, `batch_size` rows at a time.

    Args:
        call: receives the rows of a batch as a slice, and the arguments of the pipeline for them
        arguments: of the pipeline; a list has a value for each row, any other value is for all rows
        seeds: of the rows' noise
        batch_size: most rows in one call
        advance: called with the number of pictures of each call
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        batch = {name: value[rows] if isinstance(value, list) else value for name, value in arguments.items()}
        made = call(rows, {**batch, "generator": make_generators(seeds[rows])})
        pictures += made
        advance(len(made))
    return pictures


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Make a random generator for each picture, on the CPU: a seed is the same noise on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def _watch_casts() -> Iterator[list[str]]:
    """Notes where NumPy makes 8-bit values of NaN, as diffusers does silently; for this thread only."""
    faults: list[str] = []
    with np.errstate(invalid="call", call=lambda kind, _: faults.append(kind)):
        yield faults


def _named(numbers: Sequence[int], seeds: Sequence[int] | None) -> str:
    """The first picture, and how many there are besides."""
    first = f"picture {numbers[0] + 1}" if seeds is None else f"the picture of seed {seeds[numbers[0]]}"
    return first if len(numbers) == 1 else f"{first} (and {len(numbers) - 1} more)"
