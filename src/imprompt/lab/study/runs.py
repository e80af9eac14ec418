"""The runs of a study: folders that `imprompt train` has filled, and their stored results.

A run that has been measured is complete without its weights, which may be deleted.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.errors import ConfigError
from imprompt.lab.study.settings import StudySettings
from imprompt.lab.suite.scoring import Score
from imprompt.runtime.output import make_folder, write_atomically
from imprompt.training.mechanisms import MECHANISMS, read_metadata

ADAPTER_FILE, CONFIG_FILE = "adapter.safetensors", "config.json"
RECORD_FILE = "adapter.json"
"""What remains of the adapter file where the weights have been deleted: its hash and its metadata."""
RESULT_FILE, PICTURES_FILE = "study.json.gz", "study.webp"
"""The stored scores of a run and the images that the page shows, in the folder of its adapter."""

VERSION = 5
"""The version of the measurement; after a change everything is measured again."""

COMPARED_SETTINGS = (
    "training.steps", "training.batch_size", "data.source", "base.model", "loss",
)  # fmt: skip
"""Settings that runs to be compared should share; each mechanism has its own best learning rate."""

MODEL_PARTS = ("base", "image_encoder", "judge", "control")
"""Folders of the embedded model that results depend on, beside that of the style."""


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
    """The result of one run: scores, and the first images of each task that the page shows, by its key."""

    scores: Sequence[StudyScore]
    pictures: Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class StudyRun:
    """A finished run.

    Attributes:
        folder: the run's folder
        config: its settings
        metadata: of its adapter file
        digest: the SHA-256 of its adapter file
    """

    folder: Path
    config: Mapping[str, Any]
    metadata: Mapping[str, str]
    digest: str

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
    def learning_rate(self) -> float:
        """The learning rate: the U-Net's where that is trained."""
        return float(self.config["training"]["base_learning_rate" if self.trains_base else "learning_rate"])

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


def find_runs(folder: Path) -> tuple[list[StudyRun], list[str]]:
    """Return all finished runs in a folder, decoupled first, then by size, and the names of unfinished ones.

    Raises:
        ConfigError: none is finished, one has another base than the embedded one, or two are equal
    """
    places = sorted(path for path in folder.glob("*") if (path / CONFIG_FILE).is_file())
    runs = [read_run(path) for path in places if is_finished(path)]
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
    return runs, [path.name for path in places if not is_finished(path)]


def is_finished(folder: Path) -> bool:
    """Whether a run's folder has its adapter file, or the record of one that was measured and deleted."""
    return (folder / ADAPTER_FILE).is_file() or (folder / RECORD_FILE).is_file()


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
    path = folder / ADAPTER_FILE
    if not path.is_file():
        return StudyRun(folder, config, **json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
    metadata = read_metadata(path)
    if "parameters" not in metadata:
        raise ConfigError(f"{path} was not written by imprompt train: remove it")
    return StudyRun(folder, config, metadata, hash_file(path))


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


def hash_weights(weights: Path, style: str) -> str:
    """Return the SHA-256 of the parts of the embedded model that results depend on.

    Args:
        weights: folder of the embedded model
        style: of the fine-tuned base
    """
    parts = (*MODEL_PARTS, f"styles/{style}")
    paths = sorted(path for part in parts for path in (weights / part).rglob("*.safetensors"))
    digests = [[str(path.relative_to(weights)), hash_file(path)] for path in paths]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_result(folder: Path, key: str, result: RunResult, run: StudyRun | None = None) -> None:
    """Write a result into a run's folder, which is created if it does not exist.

    Args:
        folder: of the run, or of the base alone
        key: see `build_result_key`
        result: scores and images; all images are equally large
        run: leaves a record of its adapter too

    Raises:
        OutputError: it cannot be written
    """
    make_folder(folder)
    sheet = paste_rows([*result.pictures.values()])
    with write_atomically(folder / PICTURES_FILE) as part:
        sheet.save(part, format="WEBP", quality=85, method=6)
    counts = {name: len(some) for name, some in result.pictures.items()}
    values = {"key": key, "pictures": counts, "scores": [asdict(score) for score in result.scores]}
    with write_atomically(folder / RESULT_FILE) as part:
        part.write_bytes(gzip.compress(json.dumps(values).encode(), mtime=0))
    if run is not None:
        record = {"digest": run.digest, "metadata": dict(run.metadata)}
        with write_atomically(folder / RECORD_FILE) as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_result(folder: Path, key: str) -> RunResult | None:
    """Return the result that `save_result` wrote, or None if there is none of this key."""
    try:
        values = json.loads(gzip.decompress((folder / RESULT_FILE).read_bytes()))
        if values["key"] != key:
            return None
        with Image.open(folder / PICTURES_FILE) as sheet:
            rows = cut_rows(sheet.convert("RGB"), [*values["pictures"].values()])
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return None
    pictures = dict(zip(values["pictures"], rows, strict=True))
    return RunResult([StudyScore(**score) for score in values["scores"]], pictures)


def paste_rows(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Paste equally large images into one, a row below the other."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            sheet.paste(image, (left * width, top * height))
    return sheet


def cut_rows(sheet: Image.Image, counts: Sequence[int]) -> list[list[Image.Image]]:
    """Cut what `paste_rows` has pasted, given the number of images in each row."""
    width, height = sheet.width // max(counts), sheet.height // len(counts)
    return [
        [
            sheet.crop((left * width, top * height, (left + 1) * width, (top + 1) * height))
            for left in range(count)
        ]
        for top, count in enumerate(counts)
    ]
