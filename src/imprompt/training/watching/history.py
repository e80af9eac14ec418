"""A run read back from its folder, whether it runs, failed or is finished."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.runtime.settings import find_setting
from imprompt.training.integrity import read_json
from imprompt.training.watching.log import ENVIRONMENT_FILE, LOG_FILE, SAMPLES_FOLDER, read_lines

Points = Sequence[tuple[int, float | None]]
"""(step, value), in the order of the steps; None where the value was not finite."""

_ABSOLUTE = re.compile(r"(?<![\w.~:/\\])(?:/|[A-Za-z]:[\\/])(?:[^\s/\\:'\",\]]+[\\/])+")


@dataclass(frozen=True)
class Event:
    """An event at a step; `time` is in Unix seconds."""

    step: int
    time: float | int
    sentence: str


@dataclass(frozen=True)
class History:
    """A run as its folder records it.

    Attributes:
        folder: the run's folder
        config: the resolved configuration, empty if there is none
        environment: versions, device and command, empty if not written
        series: name of a figure → its points
        events: the events, in order
        pictures: step → sample grid
        seconds: time between the log's lines, without that between a stop and the resume
        written: Unix time of the last line; None for an empty log
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    series: dict[str, Points]
    events: list[Event]
    pictures: dict[int, Path]
    seconds: float | int
    written: float | None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def total_steps(self) -> int | None:
        """The configured number of steps; None if the configuration is missing."""
        return self.setting("training.steps")

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((points[-1][0] for points in self.series.values()), default=self._last_event_step)

    @property
    def is_finished(self) -> bool:
        """Whether the last step was taken and the adapter written."""
        return self.adapter_file is not None and self.step >= (self.total_steps or 0) > 0

    @property
    def distills(self) -> bool:
        """Whether the run trains a LoRA for few steps in place of an adapter."""
        return self.setting("distillation.rank", 0) > 0

    @property
    def file_name(self) -> str:
        """The name of the adapter's file, or of the LoRA's."""
        return "pytorch_lora_weights.safetensors" if self.distills else "adapter.safetensors"

    @property
    def adapter_file(self) -> Path | None:
        """The finished adapter or LoRA, if it exists."""
        path = self.folder / self.file_name
        return path if path.exists() else None

    @property
    def newest_adapter(self) -> Path | None:
        """The finished adapter or LoRA, or that of the last checkpoint, if one exists."""
        checkpoints = sorted((self.folder / "checkpoints").glob(f"[0-9]*/{self.file_name}"))
        return self.adapter_file or (checkpoints[-1] if checkpoints else None)

    def setting(self, key: str, otherwise: Any = None) -> Any:
        """Return a setting by its dotted key."""
        return find_setting(self.config, key, otherwise)

    @property
    def mechanism(self) -> str:
        """The mechanism of the run's adapter; earlier versions of imprompt called the setting `injection`."""
        return self.setting("adapter.mechanism") or self.setting("adapter.injection", "decoupled")

    def finite(self, name: str) -> list[tuple[int, float]]:
        """Return the points of a figure that have a value."""
        return [(step, value) for step, value in self.series.get(name, []) if value is not None]

    def last(self, name: str) -> float | None:
        """Return the last finite value of a figure."""
        points = self.finite(name)
        return points[-1][1] if points else None

    def lowest(self, name: str) -> tuple[int, float] | None:
        """Return the step at which a figure was lowest, and its value there."""
        return min(self.finite(name), key=lambda point: point[1], default=None)

    @property
    def _last_event_step(self) -> int:
        return max((event.step for event in self.events), default=0)


def read_history(folder: Path) -> History:
    """Read a run's folder; missing files are empty, and absolute paths lose their folders.

    If a step was logged twice, as after a resume, the later line counts.
    """
    values: dict[str, dict[int, float | None]] = {}
    events: list[Event] = []
    seconds, before = 0.0, None
    for line in read_lines(folder / LOG_FILE):
        step, time = line.pop("step"), float(line.pop("time", 0.0))
        sentence = line.pop("event", None)
        if sentence is not None:
            events.append(Event(step, time, strip_folders(str(sentence))))
        if before is not None and not _resumes(sentence):
            seconds += max(time - before, 0.0)
        before = time
        for name, value in line.items():
            values.setdefault(name, {})[step] = None if value is None else float(value)
    return History(
        folder=folder,
        config=remove_folders(read_json(folder / "config.json") or {}),
        environment=remove_folders(read_json(folder / ENVIRONMENT_FILE) or {}),
        series={name: sorted(points.items()) for name, points in values.items()},
        events=events,
        pictures=_pictures(folder / SAMPLES_FOLDER),
        seconds=seconds,
        written=before,
    )


def strip_folders(text: str) -> str:
    """Reduce the absolute paths in a sentence to names, as other machines lack these folders.

    Bytes of a name that are not UTF-8 are escaped, as a page is UTF-8.
    """
    return _ABSOLUTE.sub("", text).encode("utf-8", "backslashreplace").decode()


def remove_folders(value: Any) -> Any:
    """Reduce the absolute paths in settings to names."""
    if isinstance(value, str):
        return strip_folders(value)
    if isinstance(value, dict):
        return {key: remove_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [remove_folders(inner) for inner in value]
    return value


def format_duration(seconds: float | int) -> str:
    """Write a time: "42 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _resumes(sentence: str | None) -> bool:
    return sentence is not None and "resumed" in sentence.lower()


def _pictures(folder: Path) -> dict[int, Path]:
    grids = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
    return dict(sorted(grids.items()))
