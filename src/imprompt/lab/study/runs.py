"""The runs of a study: folders that `imprompt train` has filled, and what has been measured of them."""

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
from imprompt.report import make_folder
from imprompt.runtime.output import write_atomically
from imprompt.training.mechanisms import MECHANISMS, read_metadata

ADAPTER_FILE, CONFIG_FILE = "adapter.safetensors", "config.json"
RESULT_FILE, PICTURES_FILE = "study.json", "study.npz"
"""What was measured of a run, and its pictures, beside its adapter."""

VERSION = 3
"""Of what is measured; another one measures everything anew."""

COMPARED_SETTINGS = (
    "training.steps", "training.batch_size", "training.learning_rate", "data.source", "base.model", "loss",
)  # fmt: skip
"""Settings that runs to be compared should share."""

MODEL_PARTS = ("base", "image_encoder", "judge", "control", "styles")
"""Folders of the embedded model that results depend on."""


@dataclass(frozen=True)
class StudyScore(Score):
    """One picture, as the suite scores it, of one run; `kept` is of the attributes in `READ_ATTRIBUTES`.

    Attributes:
        mechanism, seed: of the run
        text: the name of the text in `CHANGES`, "" for none
        diversity: mean cosine distance among its subject's pictures from several seeds, if there are several
        edges: how much nearer its edges are to those given than to others', see `edge_gaps`
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
    """What was measured of one run: scores, and the pictures of each task by its key."""

    scores: Sequence[StudyScore]
    pictures: Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class StudyRun:
    """A finished run.

    Attributes:
        folder: where it is
        config: its settings
        metadata: what its file says of itself
    """

    folder: Path
    config: Mapping[str, Any]
    metadata: Mapping[str, str]

    @property
    def kind(self) -> str:
        """How the image prompt reaches the base, a key of `MECHANISMS`."""
        return self.metadata["injection"]

    @property
    def path(self) -> Path:
        """Its adapter."""
        return self.folder / ADAPTER_FILE

    @property
    def mechanism(self) -> str:
        """What tables call it: the mechanism, and the hidden layer that makes it another one."""
        hidden = self.config["adapter"].get("hidden", 0)
        return f"{self.kind}, hidden {hidden}" if hidden else self.kind

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.config["training"]["seed"])

    @property
    def parameters(self) -> int:
        """How many were trained."""
        return int(self.metadata["parameters"])

    @property
    def reads_text(self) -> bool:
        """Whether a text can act beside the image prompt."""
        return MECHANISMS[self.kind].works_with_text

    @property
    def trains_base(self) -> bool:
        """Whether the U-Net's own weights were trained too."""
        return MECHANISMS[self.kind].trains_base

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its adapter."""
        return file_digest(self.path)


def find_runs(folder: Path) -> tuple[list[StudyRun], list[str]]:
    """All finished runs in a folder, decoupled first, then by size; and the names of unfinished ones.

    Raises:
        ConfigError: none is finished, one is of another base than the embedded one, or two are the same
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
    """Read what a finished run says of itself.

    Raises:
        ConfigError: another base than the embedded one, another encoder, another variant, or a file of
            another program
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
    """In which settings runs that are to be compared differ, a phrase each."""
    found = []
    for name in COMPARED_SETTINGS:
        group, _, key = name.partition(".")
        settings = [run.config[group][key] if key else run.config[group] for run in runs]
        values = sorted({json.dumps(one, sort_keys=True) for one in settings})
        found += [f"{name} is {' and '.join(values)}"] if len(values) > 1 else []
    return found


# Stored results


def result_key(digest: str, weights: str, settings: StudySettings) -> str:
    """What a result depends on: the adapter, the embedded model, how pictures are made, what is measured."""
    text = json.dumps([VERSION, digest, weights, asdict(settings)])
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(weights: Path) -> str:
    """SHA-256 of all of the embedded model that results depend on."""
    paths = sorted(path for part in MODEL_PARTS for path in (weights / part).rglob("*.safetensors"))
    digests = [[str(path.relative_to(weights)), file_digest(path)] for path in paths]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_result(folder: Path, key: str, result: RunResult) -> None:
    """Write a result into a run's folder, which is made if it is not there.

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
    """A result as `save_result` wrote it, if there is one of this key."""
    try:
        values = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if values["key"] != key:
            return None
        with np.load(folder / PICTURES_FILE) as arrays:
            pictures = {name: [Image.fromarray(one) for one in arrays[name]] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None
    return RunResult([StudyScore(**score) for score in values["scores"]], pictures)
