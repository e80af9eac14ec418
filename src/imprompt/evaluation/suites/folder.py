"""The folder of one method on one benchmark; its files are whole and follow from one set of settings.

    drawing.json            the settings that change an image, and the models' fingerprint
    pictures/KEY.png        the image of a task, with its settings inside
    failed.jsonl            tasks without an image: key and reason
    unreadable.jsonl        reference pictures that cannot be read: name and reason
    features/               the judges' features; their names follow from their content
    scores.csv, .parquet    a row for each image and judge
    index.html, index-small.html, summary.json

Any number of processes and machines may write into one folder at once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.errors import ConfigError
from imprompt.evaluation.suites.tasks import Task
from imprompt.runtime.faults import write_faults
from imprompt.runtime.output import make_folder, remove_stale_parts, write_atomically
from imprompt.runtime.picture_files import save_picture


@dataclass(frozen=True)
class BenchmarkFolder:
    """The folder of a run."""

    path: Path

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Create the folder, or continue in one with the same settings.

        Raises:
            OutputError: it cannot be created
            ConfigError: it holds images of other settings
        """
        for name in ("pictures", "features"):
            make_folder(self.path / name)
        remove_stale_parts(self.path)
        values = json.loads(json.dumps(settings))
        if stored := self._read("settings"):
            if different := _first_difference(stored, values):
                raise ConfigError(
                    f"{self.path} holds pictures drawn with {different}; give another --output, or remove it"
                )
        else:
            self._write({"settings": values})

    def check_models(self, fingerprint: str) -> None:
        """Store which models generate, or compare them with those that did before.

        Raises:
            ConfigError: they are others
        """
        if stored := self._read("models"):
            if stored != fingerprint:
                raise ConfigError(
                    f"{self.path} holds pictures that other weights drew, under the same names; give another "
                    "--output, and every machine the same files"
                )
        else:
            self._write({"settings": self._read("settings"), "models": fingerprint})

    def picture_path(self, key: str) -> Path:
        """Return the file of a task's image."""
        return self.path / "pictures" / f"{key}.png"

    def is_drawn(self, task: Task) -> bool:
        """Whether a task's image exists."""
        return self.picture_path(task.key).exists()

    def write(self, task: Task, picture: Image.Image) -> None:
        """Write an image; two processes may write the same one."""
        about = {
            "seed": task.seed,
            "prompt": task.text,
            "scale": task.scale,
            "reference": Path(task.reference).name,
        }
        save_picture(picture, self.picture_path(task.key), about)

    def write_faults(self, name: str, faults: Mapping[str, str]) -> None:
        """Write the names of what cannot be used, and why, in place of the file's former content."""
        path = self.path / f"{name}.jsonl"
        if faults:
            write_faults(path, faults.items())
        else:
            path.unlink(missing_ok=True)

    @property
    def _drawing_file(self) -> Path:
        return self.path / "drawing.json"

    def _read(self, name: str) -> Any:
        return (
            json.loads(self._drawing_file.read_text(encoding="utf-8")).get(name)
            if self._drawing_file.exists()
            else None
        )

    def _write(self, values: Mapping[str, Any]) -> None:
        with write_atomically(self._drawing_file) as part:
            part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_first(faults: Mapping[str, str]) -> str:
    """Describe the first fault."""
    key, why = next(iter(faults.items()))
    return f"{key}: {why}"


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    different: Sequence[str] = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f"{different[0]} {before.get(different[0])!r}, not {now.get(different[0])!r}" if different else ""
