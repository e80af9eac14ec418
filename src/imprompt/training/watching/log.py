"""The log of a run: `log.jsonl`, sample grids, TensorBoard and, if configured, Weights & Biases.

runs/cats/log.jsonl             one JSON object a line: "step", "time", and figures or an "event"
runs/cats/samples/000300.png    what the adapter drew at that step
runs/cats/tensorboard/          figures, pictures and events, for `tensorboard --logdir runs`
runs/cats/environment.json      what it ran on
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from imprompt.errors import ConfigError, MissingExtra, OutputError
from imprompt.runtime.environment import describe_environment
from imprompt.runtime.output import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.jsonl"
ENVIRONMENT_FILE = "environment.json"
SAMPLES_FOLDER = "samples"

Figures = Mapping[str, float | int]


class RunLog:
    """Writes figures, grids and events; one process of a run has one.

    Args:
        folder: the run's folder; made if it is not there
        config: the resolved configuration, for Weights & Biases
        from_step: the step from which a resumed run continues; lines of later steps are deleted, as these
            steps will run again; 0 begins a new log
        wandb: a Weights & Biases project to report to as well, or ""

    Raises:
        MissingExtra: TensorBoard is not installed
        ConfigError: `wandb` names a project, and its package is not installed
        OutputError: the folder cannot be written
    """

    def __init__(
        self, folder: Path, *, config: Mapping[str, Any], from_step: int = 0, wandb: str = ""
    ) -> None:
        self.folder = folder
        self.path = folder / LOG_FILE
        with _output_errors(folder):
            (folder / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
        _drop_later(folder, from_step)
        self._open_tensorboard = _open_tensorboard(folder, from_step)
        self._wandb = _wandb_run(wandb, folder, config) if wandb else None

    def write_figures(self, step: int, figures: Figures) -> None:
        """Write the figures of one step with six significant digits; infinities and NaN become null."""
        self._write(step, {name: _round(value) for name, value in figures.items()})
        for name, value in figures.items():
            self._open_tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **figures})

    def write_picture(self, step: int, picture: Image.Image, caption: str) -> Path:
        """Write a sample grid atomically, with its caption in the file ("Description")."""
        path = self.folder / SAMPLES_FOLDER / f"{step:06d}.png"
        facts = PngImagePlugin.PngInfo()
        facts.add_itxt("Description", caption)
        with write_atomically(path) as part:
            picture.save(part, format="PNG", pnginfo=facts)
        # Height, width, channels: TensorBoard takes an array, and a copy of it, for its own thread.
        self._open_tensorboard.add_image("samples", _as_array(picture), step, dataformats="HWC")
        if self._wandb is not None:
            image = _wandb_package().Image(picture, caption=caption)
            self._wandb.log({"step": step, "samples": image})
        return path

    def write_event(self, step: int, sentence: str) -> None:
        """Write an event as a sentence: started, resumed, rolled back, interrupted, finished."""
        sentence = sentence.encode("utf-8", "backslashreplace").decode()  # a file name may be no UTF-8
        self._write(step, {"event": sentence})
        self._open_tensorboard.add_text("events", sentence, step)

    def close(self) -> None:
        """Flush TensorBoard and Weights & Biases; the log itself is written at once."""
        self._open_tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, step: int, facts: Mapping[str, Any]) -> None:
        """Append one line and flush it, so that a killed run has all its lines."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **facts}, ensure_ascii=False)
        with _output_errors(self.path), self.path.open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the log's lines as objects, in order; a half-written line is skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as log:
        for text in log:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def write_environment(folder: Path) -> Path:
    """Write `environment.json`: versions, commit, device, threads, command.

    No name of a user or a machine, and no absolute path, gets into it: it goes into the run's page.
    """
    path = folder / ENVIRONMENT_FILE
    with write_atomically(path) as part:
        text = json.dumps(describe_environment(), indent=1, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _drop_later(folder: Path, step: int) -> None:
    """Delete the log's lines and the sample grids after a step; all of them for a new run."""
    path = folder / LOG_FILE
    if path.exists():
        kept = [line for line in read_lines(path) if step and line["step"] <= step]
        with write_atomically(path) as part:
            lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
            part.write_text("".join(lines), encoding="utf-8")
    for picture in (folder / SAMPLES_FOLDER).glob("*.png"):
        if picture.stem.isdecimal() and (not step or int(picture.stem) > step):
            picture.unlink()


def _open_tensorboard(folder: Path, from_step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "train") from error
    with _output_errors(folder):
        return SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else 0)


def _wandb_package() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "watch.wandb names a project, but wandb is not installed: pip install wandb, or leave it out"
        ) from error
    return wandb


def _wandb_run(project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """Start a run there; it cannot go back a step, so a resumed run is a new one of the same group."""
    run = _wandb_package().init(
        project=project, name=folder.name, group=folder.name, dir=str(folder), config=dict(config)
    )
    run.define_metric("*", step_metric="step")
    return run


def _round(value: float | int) -> float | int | None:
    """Round to six significant digits; JSON has no NaN and no infinity."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _as_array(picture: Image.Image) -> Any:
    import numpy as np

    return np.array(picture.convert("RGB"))


class _output_errors:
    """Turn an OSError into an OutputError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}") from error
