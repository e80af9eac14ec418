"""A run's state on disk: everything an exact resume needs, in one file that is replaced whole."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from imprompt.errors import ConfigError

STATE_FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state beside the old one, flush it to the disk, then put it in the old one's place."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, folder / STATE_FILE)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def load_state(folder: Path) -> dict[str, Any]:
    """Read the state of a run that is to go on (tensors and plain values only)."""
    path = folder / STATE_FILE
    if not path.exists():
        raise ConfigError(f"nothing to resume in {folder}: start the run without --resume")
    return torch.load(path, weights_only=True, map_location="cpu")
