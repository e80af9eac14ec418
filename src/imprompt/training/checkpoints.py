"""Checkpoints of a run: folders that are written atomically; the last few and the best one are kept.

    checkpoints/000300/state.pt             everything that an exact continuation needs
                       adapter.safetensors  what the objective wrote: an adapter that generates at once
                       checkpoint.json      the step, its figures, every file's SHA-256 and its own; written
                                            last

A folder is written under another name, every file is flushed to the disk, and the folder is renamed: a killed
process or a full disk leaves earlier checkpoints intact. Only such folders, and in them only the files that
their index names, are ever deleted: a copy next to them (`000004-keep`) or a note in one of them stays.
"""

import contextlib
import hashlib
import math
import os
import pickle
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imprompt.errors import OutputError, TrainingError
from imprompt.runtime.foreign_models import first_line
from imprompt.training.integrity import read_json, write_json

STATE_FILE = "state.pt"
INDEX_FILE = "checkpoint.json"
BEST_FIGURE = "held-out loss"
"""The figure whose lowest value marks the best checkpoint."""

_STEP_NAME = re.compile(r"\d{6,}")
_SCRATCH_NAME = re.compile(r"\.\d{6,}-[0-9a-f]+(\.old)?\.part")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    figures: Mapping[str, float]
    files: Mapping[str, str]

    @property
    def loss(self) -> float:
        """The held-out loss, by which checkpoints are compared; infinite if it is missing."""
        return float(self.figures.get(BEST_FIGURE, math.inf))


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the folder of all checkpoints
        keep: number of recent checkpoints to keep in addition to the best one
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self, step: int, state: Mapping[str, Any], figures: Mapping[str, float], write: Callable[[Path], None]
    ) -> Checkpoint:
        """Save a checkpoint, then delete those that need not be kept.

        Args:
            step: number of steps taken
            state: tensors and plain values
            figures: figures of the last evaluation
            write: writes other files into a folder

        Raises:
            OutputError: it cannot be written; earlier ones stay intact
        """
        final = self.folder / f"{step:06d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clear()
            scratch = self.folder / f".{step:06d}-{secrets.token_hex(4)}.part"
            with remove_on_failure(scratch):
                write(scratch)
                torch.save(dict(state), scratch / STATE_FILE)
                write_index(scratch, step, figures)
                self._make_room(final, scratch)
                scratch.rename(final)
                flush(self.folder)
        except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
            raise OutputError(f"the checkpoint {final} cannot be written: {describe_fault(error)}") from error
        self.clear()
        self.prune()
        checkpoint = self.read(final)
        if checkpoint is None:
            raise OutputError(f"the checkpoint {final} was written and cannot be read back")
        return checkpoint

    def _make_room(self, final: Path, scratch: Path) -> None:
        """Clear a checkpoint's place: replace an earlier save of it, move anything else aside."""
        if not os.path.lexists(final):
            return
        before = self.read(final)
        if before is None or final.is_symlink() or list_foreign_files(before):
            final.rename(final.with_name(f"{final.name}-before-{secrets.token_hex(4)}"))
        else:
            final.rename(scratch.with_suffix(".old.part"))

    def list_complete(self) -> list[Checkpoint]:
        """Return all complete checkpoints with an intact index, ordered by step."""
        found = (self.read(folder) for folder in self.list_folders())
        return sorted((one for one in found if one is not None), key=lambda checkpoint: checkpoint.step)

    def list_folders(self) -> list[Path]:
        """Return the folders that are named like checkpoints and have an index, damaged ones too."""
        named = (path for path in self.folder.glob("[0-9]*") if _STEP_NAME.fullmatch(path.name))
        # A run makes no links, so that a linked folder is the user's.
        complete = (path for path in named if not path.is_symlink() and (path / INDEX_FILE).is_file())
        return sorted(complete, key=lambda path: int(path.name))

    def read(self, folder: Path) -> Checkpoint | None:
        """Read a checkpoint's index; None if it was changed or belongs to another folder."""
        match read_json(folder / INDEX_FILE):
            case {"step": int(step), "figures": dict(figures), "files": dict(files)}:
                fits = folder.name == f"{step:06d}" and all(
                    isinstance(figure, int | float) for figure in figures.values()
                )
                return Checkpoint(folder, step, figures, files) if fits else None
        return None

    def find_latest(self) -> Checkpoint | None:
        """Return the checkpoint of the last step."""
        return next(reversed(self.list_complete()), None)

    def load_latest(self) -> tuple[Checkpoint, dict[str, Any], list[str]] | None:
        """Read the state of the last intact checkpoint.

        Returns:
            the checkpoint, its state, and a sentence for each later one that was passed over; None if there
            is no checkpoint at all

        Raises:
            TrainingError: all checkpoints are damaged
        """
        notes: list[str] = []
        for folder in reversed(self.list_folders()):
            try:
                checkpoint = self.read(folder)
                if checkpoint is None:
                    raise TrainingError(f"{folder / INDEX_FILE} is not as it was written")
                return checkpoint, self.load(checkpoint), notes
            except TrainingError as error:
                notes.append(f"passed over the checkpoint {folder.name}: {error}")
        if notes:
            raise TrainingError(
                f"no checkpoint in {self.folder} is as it was written, so the run cannot go on: begin "
                f"another one in another output folder ({notes[0]})"
            )
        return None

    def find_best(self) -> Checkpoint | None:
        """Return the checkpoint with the lowest held-out loss."""
        judged = [one for one in self.list_complete() if math.isfinite(one.loss)]
        return min(judged, key=lambda one: one.loss, default=None)

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Read a checkpoint's state, which holds tensors and plain values only; no code is run.

        Raises:
            TrainingError: a file was changed, or holds something else
        """
        for name, digest in {STATE_FILE: "", **checkpoint.files}.items():
            path = checkpoint.folder / name
            if not path.is_file() or hash_file(path) != digest:
                raise TrainingError(f"{path} is missing or not as it was written")
        return read_state(checkpoint.folder / STATE_FILE)

    def prune(self) -> None:
        """Delete all but the last checkpoints and the best one; files that the user added are kept."""
        every, best = self.list_complete(), self.find_best()
        for old in every[: -self.keep]:
            if best is None or old.step != best.step:
                self._drop(old)

    def _drop(self, old: Checkpoint) -> None:
        if list_foreign_files(old):
            for name in (INDEX_FILE, *old.files):  # the index first: half a checkpoint must not look like one
                (old.folder / name).unlink(missing_ok=True)
            return
        gone = old.folder.with_name(f".{old.folder.name}-{secrets.token_hex(4)}.part")
        old.folder.rename(gone)
        shutil.rmtree(gone)

    def clear(self) -> None:
        """Delete what a killed run left half-written."""
        for path in self.folder.glob(".*.part"):
            if _SCRATCH_NAME.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def list_foreign_files(checkpoint: Checkpoint) -> list[str]:
    """Return the names in a checkpoint's folder that the run did not write, sorted."""
    own_files = {INDEX_FILE, *checkpoint.files}
    return sorted(path.name for path in checkpoint.folder.iterdir() if path.name not in own_files)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state that `torch.save` wrote; refuse anything but tensors and plain values.

    Raises:
        TrainingError: it is no dictionary, or holds something else
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise TrainingError(
            f"{path} holds more than tensors and plain values, perhaps code; nothing in it was run"
        ) from error
    except Exception as error:  # a damaged archive may fail in any way
        raise TrainingError(f"{path} is damaged: {describe_fault(error)}") from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path} holds a {type(state).__name__}, not the state of a run")
    return state


@contextlib.contextmanager
def remove_on_failure(folder: Path) -> Iterator[None]:
    """Make a folder and remove it if the block fails."""
    folder.mkdir()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_index(folder: Path, step: int, figures: Mapping[str, float]) -> None:
    """Flush every file to the disk and write the index last."""
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    numbers = {name: figure for name, figure in figures.items() if math.isfinite(figure)}
    write_json(folder / INDEX_FILE, {"step": step, "figures": numbers, "files": files})
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_fault(error: Exception) -> str:
    """Return why something could not be written."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
