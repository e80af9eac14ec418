"""Checkpoints of a run: folders that appear whole or not at all; the last few stay, and the best one.

    checkpoints/000300/state.pt             everything that an exact continuation needs
                       adapter.safetensors  what the objective wrote: an adapter that generates at once
                       checkpoint.json      the step, its figures, every file's SHA-256; written last

A folder is written under another name, every file flushed to the disk, then renamed: a killed process or a
full disk leaves the checkpoints before it as they were.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imprompt.errors import OutputError, TrainingError

STATE_FILE = "state.pt"
INDEX_FILE = "checkpoint.json"
JUDGED_BY = "held-out loss"
"""The figure whose lowest value makes a checkpoint the best."""


@dataclass(frozen=True)
class Checkpoint:
    """One finished checkpoint."""

    folder: Path
    step: int
    figures: Mapping[str, float]
    files: Mapping[str, str]

    @property
    def held_out_loss(self) -> float:
        """The figure that it is judged by; infinite if it has none."""
        return float(self.figures.get(JUDGED_BY, math.inf))


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are
        keep: how many stay beside the best
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self, step: int, state: Mapping[str, Any], figures: Mapping[str, float], write: Callable[[Path], None]
    ) -> Checkpoint:
        """Save one, then drop those that need not stay.

        Args:
            step: how many steps have been taken
            state: tensors and plain values
            figures: of the last look at the held-out samples
            write: writes other files into the folder that it is given

        Raises:
            OutputError: it cannot be written; the earlier ones are as they were
        """
        final = self.folder / f"{step:06d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clear()
            scratch = self.folder / f".{step:06d}-{secrets.token_hex(4)}.part"
            with removed_on_failure(scratch):
                write(scratch)
                torch.save(dict(state), scratch / STATE_FILE)
                seal(scratch, step, figures)
                if final.exists():  # the same step once more: a resumed run that was told to save
                    final.rename(scratch.with_suffix(".old.part"))
                scratch.rename(final)
                flush(self.folder)
        except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
            raise OutputError(f"the checkpoint {final} cannot be written: {reason(error)}") from error
        self.clear()
        self.prune()
        return self.read(final)

    def every(self) -> list[Checkpoint]:
        """All finished ones, in the order of their steps."""
        folders = sorted(path for path in self.folder.glob("[0-9]*") if (path / INDEX_FILE).is_file())
        return sorted((self.read(folder) for folder in folders), key=lambda checkpoint: checkpoint.step)

    def read(self, folder: Path) -> Checkpoint:
        """Read what a checkpoint says of itself."""
        index = json.loads((folder / INDEX_FILE).read_text())
        return Checkpoint(folder, index["step"], index["figures"], index["files"])

    def latest(self) -> Checkpoint | None:
        """The one of the last step."""
        return next(reversed(self.every()), None)

    def best(self) -> Checkpoint | None:
        """The one with the lowest held-out loss."""
        judged = [one for one in self.every() if math.isfinite(one.held_out_loss)]
        return min(judged, key=lambda one: one.held_out_loss, default=None)

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Read a checkpoint's state.

        Raises:
            TrainingError: a file is not the one that was written
        """
        for name, digest in checkpoint.files.items():
            path = checkpoint.folder / name
            if not path.is_file() or sha256(path) != digest:
                raise TrainingError(
                    f"{path} is missing or not as it was written; delete {checkpoint.folder}, and the run "
                    "goes on from the checkpoint before it"
                )
        return torch.load(checkpoint.folder / STATE_FILE, weights_only=True, map_location="cpu")

    def prune(self) -> None:
        """Drop all but the last ones and the best."""
        every, best = self.every(), self.best()
        for old in every[: -self.keep]:
            if best is None or old.step != best.step:
                # Renamed first: half a checkpoint must not look like one.
                gone = old.folder.with_name(f".{old.folder.name}-{secrets.token_hex(4)}.part")
                old.folder.rename(gone)
                shutil.rmtree(gone)

    def clear(self) -> None:
        """Remove what a killed run left half-written."""
        for path in self.folder.glob(".*.part"):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Make a folder; remove it if the block fails."""
    folder.mkdir()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def seal(folder: Path, step: int, figures: Mapping[str, float]) -> None:
    """Flush every file to the disk, and say last what they are."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    index = {"step": step, "figures": {k: v for k, v in figures.items() if math.isfinite(v)}, "files": files}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """Why something could not be written."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
