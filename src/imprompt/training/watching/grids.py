"""Sample grids on a page, few and small enough to be embedded."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from imprompt.report import encode_jpeg, make_data_uri
from imprompt.training.watching.history import History

MOST_GRIDS = 24
LARGEST_WHOLE = 400_000
"""A grid of more bytes than this is put in as a JPEG even where space is no matter."""

SMALL_MOST_GRIDS = 8


@dataclass(frozen=True)
class SampleGrid:
    """A sample grid on a page; `source` is a data URI, width and height are in pixels."""

    step: int
    source: str
    width: int
    height: int


def describe_grid(history: History) -> str:
    """Describe the rows of a grid by the run's settings."""
    scales = history.setting("watch.scales")
    prompts = history.setting("watch.prompts")
    if not scales or not prompts:
        return "Samples of the adapter, from the same noise each time."
    strengths = _join_words([f"{scale:g}" for scale in scales])
    return (
        f"First row: held-out references. Below, from the same noise each time: λ = {strengths}, "
        f"{', then '.join(_describe_prompt(prompt) for prompt in prompts)}."
    )


def _describe_prompt(prompt: str) -> str:
    known = {"": "without a prompt", "own": "with the sample’s own caption"}
    return known.get(prompt, f"with “{prompt}”")


def _join_words(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def choose_evenly(pictures: dict[int, Path], most: int) -> dict[int, Path]:
    """Return at most `most` images, evenly spread, the first and the last included."""
    steps = list(pictures)
    if len(steps) <= most:
        return pictures
    places = {round(place * (len(steps) - 1) / (most - 1)) for place in range(most)}
    return {steps[place]: pictures[steps[place]] for place in sorted(places)}


def embed_grids(pictures: dict[int, Path], room: int | None = None) -> list[SampleGrid]:
    """Return grids as data URIs: unchanged, or as JPEGs that fit into `room` bytes together."""
    small = room is not None
    few = choose_evenly(pictures, SMALL_MOST_GRIDS if small else MOST_GRIDS)
    each = room // max(len(few), 1) if small else LARGEST_WHOLE
    return [_embed_grid(step, path, each, small=small) for step, path in few.items()]


def _embed_grid(step: int, path: Path, room: int, *, small: bool) -> SampleGrid:
    data, kind = path.read_bytes(), "png"
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if small or len(data) > room:
        data, kind = encode_jpeg(picture, room), "jpeg"
    return SampleGrid(step, make_data_uri(data, kind), *picture.size)
