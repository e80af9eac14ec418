"""Call a pipeline and check its pictures: black or broken ones are an error, never saved or measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from imprompt.errors import OutputError


def remove_safety_checker(pipe: Any) -> None:
    """Remove a base's safety checker, in place, where pictures are measured: it makes some of them black."""
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None


def call_pipeline(
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    seeds: Sequence[int] | None = None,
) -> list[Image.Image]:
    """Call a pipeline, and return its pictures if every one is the model's own.

    Args:
        call: a diffusers pipeline
        arguments: the arguments of the call
        seeds: the names of the pictures in messages; by default their numbers

    Raises:
        OutputError: a picture that the safety checker painted black, or values that are not finite
    """
    with _watch_casts() as faults:
        result = call(**arguments)
    pictures = list(result.images)
    flags = getattr(result, "nsfw_content_detected", None) or []
    if black := [number for number, is_flagged in enumerate(flags) if is_flagged]:
        raise OutputError(
            f"{_name(black, seeds)} was painted black by the base's safety checker; try another seed or "
            "prompt, or take the checker off (pipe.safety_checker = None)"
        )
    if faults:
        black = [number for number, picture in enumerate(pictures) if not np.asarray(picture).any()]
        raise OutputError(
            f"{_name(black or [*range(len(pictures))], seeds)} holds values that are not finite (NaN): "
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
        arguments: arguments of the pipeline; a list has a value for each row, any other value is for all rows
        seeds: the seed of each row's noise
        batch_size: the most rows in one call
        advance: called with the number of pictures of each call
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        batch = {name: value[rows] if isinstance(value, list) else value for name, value in arguments.items()}
        batch_pictures = call(rows, {**batch, "generator": make_generators(seeds[rows])})
        pictures += batch_pictures
        advance(len(batch_pictures))
    return pictures


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Make a random generator for each picture, on the CPU: a seed is the same noise on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def _watch_casts() -> Iterator[list[str]]:
    """Record where NumPy converts NaN to 8-bit values, as diffusers does silently, in this thread."""
    faults: list[str] = []
    with np.errstate(invalid="call", call=lambda kind, _: faults.append(kind)):
        yield faults


def _name(numbers: Sequence[int], seeds: Sequence[int] | None) -> str:
    """Name the first picture, and count the others."""
    first = f"picture {numbers[0] + 1}" if seeds is None else f"the picture of seed {seeds[numbers[0]]}"
    return first if len(numbers) == 1 else f"{first} (and {len(numbers) - 1} more)"
