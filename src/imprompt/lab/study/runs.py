"""The runs of a study: folders that `imprompt train` has filled, and their stored results."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from imprompt.errors import ConfigError
from imprompt.lab.study.settings import StudySettings
from imprompt.lab.suite.scoring import Score
from imprompt.runtime.output import make_folder, write_atomically
from imprompt.training.mechanisms import MECHANISMS, read_metadata

ADAPTER_FILE, CONFIG_FILE = "adapter.safetensors", "config.json"
RESULT_FILE, PICTURES_FILE = "study.json", "study.npz"
"""The stored scores of a run and its images, in the folder of its adapter."""

VERSION = 4
"""The version of the measurement; after a change everything is measured again."""

COMPARED_SETTINGS = (
    "training.steps", "training.batch_size", "data.source", "base.model", "loss",
)  # fmt: skip
"""Settings that runs to be compared should share; each mechanism has its own best learning rate."""

MODEL_PARTS = ("base", "image_encoder", "judge", "control", "styles")
"""Folders of the embedded model that results depend on."""


@dataclass(frozen=True)
class StudyScore(Score):
    """The suite's scores of one image of a run; `kept` is of the attributes in `READ_ATTRIBUTES`.

    Attributes:
        mechanism, seed: of the run
        text: the name of the text in `CHANGES`, "" for none
        diversity: mean cosine distance among its subject's images of several seeds; None without several
        edges: how much nearer its edges are to its own control than to others', see `measure_edge_gaps`
        lines: share of its pixels that a line drawing could have; on the fine-tuned base
    """

    mechanism: str
    seed: int
    text: str
    diversity: float | None
    edges: float | None
    lines: float | None


@dataclass(frozen=True)
class RunResult:
    """The result of one run: scores, and the images of each task by its key."""

    scores: Sequence[StudyScore]
    pictures: Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class StudyRun:
    """A finished run.

    Attributes:
        folder: the run's folder
        config: its settings
        metadata: of its adapter file
    """

    folder: Path
    config: Mapping[str, Any]
    metadata: Mapping[str, str]

    @property
    def kind(self) -> str:
        """The key of its mechanism in `MECHANISMS`."""
        return self.metadata["injection"]

    @property
    def path(self) -> Path:
        """Its adapter file."""
        return self.folder / ADAPTER_FILE

    @property
    def mechanism(self) -> str:
        """The name in tables: the mechanism and, if there is one, the width of its hidden layer."""
        hidden = self.config["adapter"].get("hidden", 0)
        return f"{self.kind}, hidden {hidden}" if hidden else self.kind

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(self.config["training"]["seed"])

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return int(self.metadata["parameters"])

    @property
    def reads_text(self) -> bool:
        """Whether a text can act together with the image prompt."""
        return MECHANISMS[self.kind].works_with_text

    @property
    def trains_base(self) -> bool:
        """Whether the U-Net's own weights were trained too."""
        return MECHANISMS[self.kind].trains_base

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its adapter file."""
        return hash_file(self.path)


def find_runs(folder: Path) -> tuple[list[StudyRun], list[str]]:
    """Return all finished runs in a folder, decoupled first, then by size, and the names of unfinished ones.

    Raises:
        ConfigError: none is finished, one has another base than the embedded one, or two are equal
    """
    places = sorted(path for path in folder.glob("*") if (path / CONFIG_FILE).is_file())
    runs = [read_run(path) for path in places if (path / ADAPTER_FILE).is_file()]
    if not runs:
        raise ConfigError(
            f"{folder} holds no finished run (a folder with {ADAPTER_FILE} and {CONFIG_FILE}); "
            "scripts/study trains them"
        )
    first: dict[tuple[str, int], StudyRun] = {}
    for run in runs:
        if (other := first.setdefault((run.mechanism, run.seed), run)) is not run:
            raise ConfigError(
                f"{other.folder.name} and {run.folder.name} in {folder} are both {run.mechanism} with seed "
                f"{run.seed}: move one away"
            )
    runs.sort(key=lambda run: (run.kind != "decoupled", run.parameters, run.mechanism, run.seed))
    return runs, [path.name for path in places if not (path / ADAPTER_FILE).is_file()]


def read_run(folder: Path) -> StudyRun:
    """Read the settings and the metadata of a finished run.

    Raises:
        ConfigError: it has another base, encoder or variant, or its file is from another program
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
        raise ConfigError(f"{folder / ADAPTER_FILE} was not written by imprompt train: remove it")
    return StudyRun(folder, config, metadata)


def list_differences(runs: Sequence[StudyRun]) -> list[str]:
    """List the settings in which runs that are to be compared differ, as phrases."""
    found = []
    for name in COMPARED_SETTINGS:
        group, _, key = name.partition(".")
        settings = [run.config[group][key] if key else run.config[group] for run in runs]
        values = sorted({json.dumps(one, sort_keys=True) for one in settings})
        found += [f"{name} is {' and '.join(values)}"] if len(values) > 1 else []
    return found


# Stored results


def build_result_key(digest: str, weights: str, settings: StudySettings) -> str:
    """Return a hash of what a result depends on: adapter, embedded model, settings, version."""
    text = json.dumps([VERSION, digest, weights, asdict(settings)])
    return hashlib.sha256(text.encode()).hexdigest()


def hash_weights(weights: Path) -> str:
    """Return the SHA-256 of the parts of the embedded model that results depend on."""
    paths = sorted(path for part in MODEL_PARTS for path in (weights / part).rglob("*.safetensors"))
    digests = [[str(path.relative_to(weights)), hash_file(path)] for path in paths]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_result(folder: Path, key: str, result: RunResult) -> None:
    """Write a result into a run's folder, which is created if it does not exist.

    Raises:
        OutputError: it cannot be written
    """
    make_folder(folder)
    arrays: dict[str, Any] = {
        name: np.stack([*map(np.asarray, some)]) for name, some in result.pictures.items()
    }
    with write_atomically(folder / PICTURES_FILE) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    values = {"key": key, "scores": [asdict(score) for score in result.scores]}
    with write_atomically(folder / RESULT_FILE) as part:
        part.write_text(json.dumps(values) + "\n", encoding="utf-8")


def load_result(folder: Path, key: str) -> RunResult | None:
    """Return the result that `save_result` wrote, or None if there is none of this key."""
    try:
        values = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if values["key"] != key:
            return None
        with np.load(folder / PICTURES_FILE) as arrays:
            pictures = {name: [Image.fromarray(one) for one in arrays[name]] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None
    return RunResult([StudyScore(**score) for score in values["scores"]], pictures)
