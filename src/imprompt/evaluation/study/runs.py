"""The runs of a study: folders that `imprompt train` has filled, and what is known of them already."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprompt.errors import ConfigError
from imprompt.evaluation.study.settings import Settings
from imprompt.injection import read_metadata
from imprompt.output import written_whole

ADAPTER_FILE, CONFIG_FILE = "adapter.safetensors", "config.json"
KEPT, KEPT_PICTURES = "study.json", "study.png"
"""What was measured of a run, and the pictures, beside its adapter."""

VERSION = 2
"""Of what is measured; another one makes everything anew."""

ALIKE = (
    "training.steps",
    "training.batch_size",
    "training.learning_rate",
    "data.source",
    "base.model",
    "loss",
)
"""Settings that runs to be compared should share."""

COLUMNS = 26
"""Pictures in a row of the kept sheet."""


@dataclass(frozen=True)
class Score:
    """One picture's scores, in one condition.

    `similarity` is the judge's to the reference, `gap` how much more than to a shuffled one; `ceiling` the
    gap of a light copy of the reference; `rank` is the concept's place, from 0, among `gallery`;
    `caption` the judge's likeness to the concept's name (CLIP-T; NaN if it reads no text); `asked_gap`
    how much more it looks like what the base alone draws from the concept's text than from other texts;
    `on_asked_ground` whether the border has the colour that the text, or the fine-tuned base, asks for;
    `edges` how much more the edges correlate with the control's than with others' (NaN where there is
    none).
    """

    mechanism: str
    seed: int
    condition: str
    concept: str
    similarity: float
    gap: float
    ceiling: float
    rank: int
    gallery: int
    caption: float
    asked_gap: float
    on_asked_ground: bool
    edges: float


@dataclass(frozen=True)
class Measured:
    """What came of one run: scores and pictures, condition by condition, in the order of the concepts."""

    scores: Sequence[Score]
    pictures: Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class StudyRun:
    """A finished run.

    Attributes:
        folder: where it is
        injection: its mechanism, as its file says
        config: its settings
        metadata: of its file
    """

    folder: Path
    injection: str
    config: Mapping[str, Any]
    metadata: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Its adapter."""
        return self.folder / ADAPTER_FILE

    @property
    def mechanism(self) -> str:
        """What tables call it: the injection, and the hidden layer that makes it another one."""
        hidden = self.config["adapter"].get("hidden", 0)
        return f"{self.injection}, hidden {hidden}" if hidden else self.injection

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.config["training"]["seed"])

    @property
    def parameters(self) -> int:
        """How many were trained."""
        return int(self.metadata["parameters"])

    def setting(self, name: str) -> Any:
        """A setting by its dotted name."""
        value: Any = self.config
        for part in name.split("."):
            value = value[part]
        return value

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its adapter."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_runs(folder: Path) -> tuple[list[StudyRun], list[str]]:
    """All finished runs in a folder, and the names of those that are not finished.

    Raises:
        ConfigError: none is finished, one is of another base than the embedded one, or two are the same
    """
    places = sorted(path for path in folder.glob("*") if (path / CONFIG_FILE).is_file())
    runs = [read_run(path) for path in places if (path / ADAPTER_FILE).is_file()]
    if not runs:
        raise ConfigError(f"{folder} holds no finished run (a folder with {ADAPTER_FILE} and {CONFIG_FILE})")
    seen: dict[tuple[str, int], StudyRun] = {}
    for run in runs:
        if (other := seen.setdefault((run.mechanism, run.seed), run)) is not run:
            raise ConfigError(
                f"{other.folder.name} and {run.folder.name} in {folder} are both {run.mechanism} with seed "
                f"{run.seed}: move one away"
            )
    return runs, [path.name for path in places if not (path / ADAPTER_FILE).is_file()]


def read_run(folder: Path) -> StudyRun:
    """Read what a finished run says of itself.

    Raises:
        ConfigError: another base than the embedded one, another encoder, or a file of an older version
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    base = config["base"]
    if base["model"] != "mini" or base["image_encoder"] != "known" or config["adapter"]["variant"] != "base":
        raise ConfigError(
            f"{folder} is a run on {base['model']} of the variant {config['adapter']['variant']}; the study "
            'compares runs on "mini" with its own image encoder, of the variant "base"'
        )
    metadata = read_metadata(folder / ADAPTER_FILE)
    if "parameters" not in metadata:
        raise ConfigError(f"{folder / ADAPTER_FILE} does not say how many parameters it has: train it anew")
    return StudyRun(folder, metadata["injection"], config, metadata)


def differences(runs: Sequence[StudyRun]) -> list[str]:
    """In which settings runs that are to be compared differ, a phrase each."""
    found = []
    for name in ALIKE:
        values = {json.dumps(run.setting(name), sort_keys=True) for run in runs}
        if len(values) > 1:
            found.append(f"{name} is {' and '.join(sorted(values))}")
    return found


# What has been measured


def key_of(digest: str, weights: str, settings: Settings) -> str:
    """What kept results depend on: adapter, embedded model, how pictures are made, what is measured."""
    said = json.dumps([VERSION, digest, weights, asdict(settings)])
    return hashlib.sha256(said.encode()).hexdigest()


def keep(folder: Path, key: str, measured: Measured) -> None:
    """Write results beside an adapter.

    Raises:
        OutputError: they cannot be written
    """
    every = [picture for pictures in measured.pictures.values() for picture in pictures]
    with written_whole(folder / KEPT_PICTURES) as part:
        packed(every).save(part, format="PNG", optimize=True)
    counts = {condition: len(pictures) for condition, pictures in measured.pictures.items()}
    scores = [_plain(asdict(score)) for score in measured.scores]
    with written_whole(folder / KEPT) as part:
        text = json.dumps({"key": key, "side": every[0].width, "pictures": counts, "scores": scores})
        part.write_text(text + "\n", encoding="utf-8")


def kept(folder: Path, key: str) -> Measured | None:
    """Results as `keep` wrote them, if they are of this key."""
    try:
        told = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        if told["key"] != key:
            return None
        with Image.open(folder / KEPT_PICTURES) as sheet:
            every = unpacked(sheet.convert("RGB"), told["side"])
    except (OSError, ValueError, KeyError):
        return None
    pictures: dict[str, list[Image.Image]] = {}
    for condition, count in told["pictures"].items():
        pictures[condition], every = every[:count], every[count:]
    return Measured([Score(**_numbers(score)) for score in told["scores"]], pictures)


def packed(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size on one sheet."""
    side = pictures[0].width
    sheet = Image.new("RGB", (COLUMNS * side, -(-len(pictures) // COLUMNS) * side))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % COLUMNS * side, place // COLUMNS * side))
    return sheet


def unpacked(sheet: Image.Image, side: int) -> list[Image.Image]:
    """What `packed` put there, and what is empty at the end."""
    pixels = np.asarray(sheet)
    cells = pixels.reshape(-1, side, COLUMNS, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return [Image.fromarray(cell) for cell in cells]


def _plain(score: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in score.items()}


def _numbers(score: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in score.items()}
