"""Write jobs: as TOML files, and as the settings inside a picture."""

import functools
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.generation.job.located_files import hash_file
from imprompt.generation.job.model import Job
from imprompt.generation.job.reference import Move
from imprompt.runtime.output import check_output, write_atomically

_ALWAYS_WRITTEN = (
    "prompt",
    "negative_prompt",
    "base",
    "adapter",
    "guidance_scale",
    "steps",
    "seed",
    "width",
    "height",
)


def save_job(job: Job, path: str | os.PathLike[str]) -> None:
    """Write a job as TOML, completely or not at all; relative paths become relative to the file.

    Raises:
        OutputError: another suffix than .toml, a missing folder, a full disk
    """
    path = Path(path)
    check_output(path, ".toml")

    def make_relative(file: str) -> str:
        return file if os.path.isabs(file) else os.path.relpath(file, path.parent)

    values = _dump(job, make_relative, exclude_defaults=True)
    with write_atomically(path) as part:
        part.write_text(_toml(values), encoding="utf-8", errors="backslashreplace")


def collect_settings(job: Job, path: Path) -> dict[str, Any]:
    """Return the settings to store in a picture at `path`: those of the job, and the versions of libraries.

    Paths are relative to the picture, or to the working directory. A path that was given relative, such as
    ../cat.png, stays so. A file elsewhere is named without its folder, so that a picture that is passed on
    reveals nothing about the disk where it was made. A hash of each file says whether a file of that name is
    the same one.
    """
    folder = Path(os.path.abspath(path.parent))

    def make_relative(file: str) -> str:
        return _make_relative(file, folder)

    values, changed = (_dump(job, make_relative, exclude_defaults=only) for only in (False, True))
    written = {key: value for key, value in values.items() if key in changed or key in _ALWAYS_WRITTEN}
    references = [{"images": one["images"], "scale": 1.0} | one for one in changed["references"]]
    hashes = {make_relative(file): digest for file in job.files if (digest := hash_file(file))}
    return {
        **{key: written[key] for key in written if key != "output"},
        "references": references,
        **({"hashes": hashes} if hashes else {}),
        "versions": dict(list_versions()),
    }


def _make_relative(file: str, folder: Path) -> str:
    """Return the path to store in a picture in a folder: it names no folder that the user did not name."""
    whole = Path(os.path.abspath(file))
    for place in (folder, Path.cwd()):
        if whole.is_relative_to(place):
            return whole.relative_to(place).as_posix()
    if os.path.isabs(file):
        return whole.name
    relative = Path(os.path.relpath(whole, folder))
    given, named = ([part for part in path.parts if part != os.pardir] for path in (Path(file), relative))
    return relative.as_posix() if given[len(given) - len(named) :] == named else Path(file).as_posix()


def _dump(job: Job, move: Move, *, exclude_defaults: bool) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude_defaults=exclude_defaults, context={"move": move})


def _toml(values: Mapping[str, Any]) -> str:
    """Write the settings, then each group of a list of groups under a heading."""
    groups = {key: value for key, value in values.items() if _is_groups(value)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if key not in groups]
    for key, group in groups.items():
        for one in group:
            lines += ["", f"[[{key}]]", *(f"{name} = {_toml_value(value)}" for name, value in one.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _is_groups(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_toml_value(key)} = {_toml_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    # JSON's strings, numbers and truth values are valid TOML, except for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@functools.cache
def list_versions() -> Mapping[str, str]:
    """Return the versions that a picture stores, by the name of the package."""
    return {package: importlib.metadata.version(package) for package in ("imprompt", "torch", "diffusers")}
