"""What a run's folder tells, read back: for its page and its card, whether it runs, failed or is finished."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.training.integrity import read_json
from imprompt.training.watching.log import ENVIRONMENT_FILE, LOG_FILE, SAMPLES_FOLDER, read_lines

Points = Sequence[tuple[int, float | None]]
"""(step, value), in the order of the steps; None where the value was not finite."""

_ABSOLUTE = re.compile(r"(?<![\w.~:/\\])(?:/|[A-Za-z]:[\\/])(?:[^\s/\\:'\",\]]+[\\/])+")


@dataclass(frozen=True)
class Event:
    """What happened at a step; `time` in Unix seconds."""

    step: int
    time: float | int
    sentence: str


@dataclass(frozen=True)
class History:
    """A run, as its folder has it.

    Attributes:
        folder: the run's folder
        config: the resolved configuration, empty if there is none
        environment: what it ran on, empty if that was not written
        series: name of a figure → its points
        events: what happened, in order
        pictures: step → sample grid
        seconds: time between the log's lines, but not between a stop and the resume after it
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
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def total_steps(self) -> int | None:
        """How many steps it shall make; None if the configuration is gone."""
        return self.setting("training.steps")

    @property
    def step(self) -> int:
        """How far it is, or came."""
        return max((points[-1][0] for points in self.series.values()), default=self._last_event_step)

    @property
    def finished(self) -> bool:
        """Whether the last step was made and the adapter written."""
        return self.adapter_file is not None and self.step >= (self.total_steps or 0) > 0

    @property
    def adapter_file(self) -> Path | None:
        """The finished adapter, if there is one."""
        path = self.folder / "adapter.safetensors"
        return path if path.exists() else None

    @property
    def newest_adapter(self) -> Path | None:
        """The finished adapter, or that of the last checkpoint, if there is one."""
        checkpoints = sorted((self.folder / "checkpoints").glob("[0-9]*/adapter.safetensors"))
        return self.adapter_file or (checkpoints[-1] if checkpoints else None)

    def setting(self, key: str, otherwise: Any = None) -> Any:
        """A setting by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return otherwise if value is None else value

    @property
    def mechanism(self) -> str:
        """The mechanism of the run's adapter; earlier versions of imprompt called the setting `injection`."""
        return self.setting("adapter.mechanism") or self.setting("adapter.injection", "decoupled")

    def finite(self, name: str) -> list[tuple[int, float]]:
        """The points of a figure that have a value."""
        return [(step, value) for step, value in self.series.get(name, []) if value is not None]

    def last(self, name: str) -> float | None:
        """The last finite value of a figure."""
        points = self.finite(name)
        return points[-1][1] if points else None

    def lowest(self, name: str) -> tuple[int, float] | None:
        """The step at which a figure was lowest, and its value there."""
        return min(self.finite(name), key=lambda point: point[1], default=None)

    @property
    def _last_event_step(self) -> int:
        return max((event.step for event in self.events), default=0)


def read_history(folder: Path) -> History:
    """Read a run's folder; what is not there yet is empty. Absolute paths lose their folders.

    Where a step was logged twice, as after a resume, the later line counts.
    """
    values: dict[str, dict[int, float | None]] = {}
    events: list[Event] = []
    seconds, before = 0.0, None
    for line in read_lines(folder / LOG_FILE):
        step, time = line.pop("step"), float(line.pop("time", 0.0))
        sentence = line.pop("event", None)
        if sentence is not None:
            events.append(Event(step, time, without_folders(str(sentence))))
        if before is not None and not _resumes(sentence):
            seconds += max(time - before, 0.0)
        before = time
        for name, value in line.items():
            values.setdefault(name, {})[step] = None if value is None else float(value)
    return History(
        folder=folder,
        config=portable(read_json(folder / "config.json") or {}),
        environment=portable(read_json(folder / ENVIRONMENT_FILE) or {}),
        series={name: sorted(points.items()) for name, points in values.items()},
        events=events,
        pictures=_pictures(folder / SAMPLES_FOLDER),
        seconds=seconds,
        written=before,
    )


def without_folders(text: str) -> str:
    """A sentence whose absolute paths are bare names: a page is for others, who have not these folders.

    Bytes of a name that are no UTF-8 are spelled out: a page is UTF-8.
    """
    return _ABSOLUTE.sub("", text).encode("utf-8", "backslashreplace").decode()


def portable(value: Any) -> Any:
    """Settings whose absolute paths are bare names."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    return value


def duration(seconds: float | int) -> str:
    """A time in words: "42 s", "12 min", "3 h 20 min", "2 d 4 h"."""
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
    found = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
    return dict(sorted(found.items()))
