"""The folder of one method on one benchmark: what is there is whole, and follows from one set of settings.

    drawing.json            the settings that pictures follow from, and the models' fingerprint
    pictures/KEY.png        one for each task, written whole or not at all, its settings inside
    failed.jsonl            tasks that could not be drawn: key and reason
    unreadable.jsonl        reference pictures that could not be read: name and reason
    features/               what judges see of every picture; content decides the names, so none is stale
    scores.csv, .parquet    a row for each picture and judge
    index.html, index-small.html, summary.json

Any number of processes and machines may draw into one folder at once.
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.errors import ConfigError, OutputError
from imprompt.evaluation.suites.tasks import Task
from imprompt.runtime.output import save_picture, write_atomically


@dataclass(frozen=True)
class BenchmarkFolder:
    """Where the pictures of a run are."""

    path: Path

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or go on in one of the same settings.

        Raises:
            OutputError: it cannot be made
            ConfigError: it holds pictures of other settings
        """
        try:
            for name in ("pictures", "features"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise OutputError(f"the folder {self.path} cannot be made: {error.strerror or error}") from error
        said = _plain(settings)
        if found := self._said("settings"):
            if different := _first_difference(found, said):
                raise ConfigError(
                    f"{self.path} holds pictures drawn with {different}; give another --output, or remove it"
                )
        else:
            self._say({"settings": said})

    def _sweep(self) -> None:
        """Remove what killed processes left half-written: nobody writes one picture for an hour."""
        for path in self.path.glob("*/.imprompt-*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()

    def same_models(self, fingerprint: str) -> None:
        """Note which models draw, or compare them with those that drew before.

        Raises:
            ConfigError: they are others
        """
        if found := self._said("models"):
            if found != fingerprint:
                raise ConfigError(
                    f"{self.path} holds pictures that other weights drew, under the same names; give another "
                    "--output, and every machine the same files"
                )
        else:
            self._say({"settings": self._said("settings"), "models": fingerprint})

    def picture(self, key: str) -> Path:
        """The file of a task's picture."""
        return self.path / "pictures" / f"{key}.png"

    def is_drawn(self, task: Task) -> bool:
        """Whether a task is done."""
        return self.picture(task.key).exists()

    def write(self, task: Task, picture: Image.Image) -> None:
        """Keep a picture; two processes may write the same one."""
        about = {
            "seed": task.seed,
            "prompt": task.text,
            "scale": task.scale,
            "reference": _name(task.reference),
        }
        save_picture(picture, self.picture(task.key), about)

    def note(self, name: str, faults: Mapping[str, str]) -> None:
        """Write down what could not be used or drawn, and why, in place of what the file held."""
        path = self.path / f"{name}.jsonl"
        lines = [json.dumps({"name": key, "reason": why}, ensure_ascii=False) for key, why in faults.items()]
        if lines:
            with write_atomically(path) as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            path.unlink(missing_ok=True)

    @property
    def _about(self) -> Path:
        return self.path / "drawing.json"

    def _said(self, name: str) -> Any:
        return json.loads(self._about.read_text(encoding="utf-8")).get(name) if self._about.exists() else None

    def _say(self, values: Mapping[str, Any]) -> None:
        with write_atomically(self._about) as part:
            part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def too_many(faults: int, total: int) -> bool:
    """Whether more than 1 % failed; one may always, of however few."""
    return faults > max(1, total // 100)


def first_of(faults: Mapping[str, str]) -> str:
    """One fault as a phrase."""
    key, why = next(iter(faults.items()))
    return f"{key}: {why}"


def _name(path: str) -> str:
    return Path(path).name


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    different: Sequence[str] = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f"{different[0]} {before.get(different[0])!r}, not {now.get(different[0])!r}" if different else ""
