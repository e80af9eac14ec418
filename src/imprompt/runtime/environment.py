"""The environment of a result: versions, commit, device, command. It is stored with the result."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from imprompt.runtime.machine import name_processor

PACKAGES = ("imprompt", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
"""The packages whose versions are stored with a result."""


def describe_environment() -> dict[str, Any]:
    """Return versions, commit (of a checkout), device, threads and command of this process.

    Pages show these facts, so they contain no name of a user or a machine, and no absolute path.
    """
    import torch

    facts = {
        "command": _format_command(sys.argv),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else name_processor(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }
    commit = _find_commit(Path(__file__).parent)
    return facts | ({"commit": commit} if commit else {})


def _format_command(words: list[str]) -> str:
    """Return the command; absolute paths become relative to this folder, or else bare names."""
    program, *arguments = words
    name = "imprompt" if Path(program).name == "__main__.py" else Path(program).name
    return shlex.join([name, *(_shorten_path(word) for word in arguments)])


def _shorten_path(word: str) -> str:
    key, separator, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    here = Path.cwd()
    return key + separator + (str(path.relative_to(here)) if path.is_relative_to(here) else path.name)


def _find_commit(folder: Path) -> str:
    """Return the commit of the running source and whether it was changed; empty if it is no checkout."""
    try:
        git = ["git", "-C", str(folder)]
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return ""
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + (" with changes" if changed.returncode else "")
