"""Jobs in files: TOML to be read and written, and the settings inside our pictures."""

import difflib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngImageFile
from pydantic import ValidationError

from imprompt.errors import ConfigError, ImageError
from imprompt.generation.job.model import Job, JobControl, JobReference, Move
from imprompt.runtime.files import find_file_fault
from imprompt.runtime.output import SETTINGS_KEY, check_output, write_atomically
from imprompt.runtime.settings import read_toml

_ALWAYS_TOLD = (
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
_OF_THE_FILE = {"versions"}


def load_job(path: str | os.PathLike[str]) -> Job:
    """Read a job from a TOML file; its paths are relative to the file.

    Raises:
        ConfigError: no such file, no TOML, an unknown key (and the nearest known one), a value out of range,
            settings that do not go together
    """
    path = Path(path)
    values = read_toml(path, kind="file")
    return parse_job(values, f"{path}: ", lambda file: str(Path(path.parent, file)))


def save_job(job: Job, path: str | os.PathLike[str]) -> None:
    """Write a job as TOML, whole or not at all; relative paths become relative to the file.

    Raises:
        OutputError: another suffix than .toml, a missing folder, a full disk
    """
    path = Path(path)
    check_output(path, ".toml")

    def moved(file: str) -> str:
        return file if os.path.isabs(file) else os.path.relpath(file, path.parent)

    values = _dumped(job, moved, exclude_defaults=True)
    with write_atomically(path) as part:
        part.write_text(_toml(values), encoding="utf-8", errors="backslashreplace")


def read_job(picture: str | os.PathLike[str]) -> Job:
    """Return the job that made a picture of ours, to be changed and run again.

    Files are looked for beside the picture, then in the working directory; whether they are there is not
    checked.

    Raises:
        ImageError: no such picture, or none of ours
        ConfigError: settings that this version does not know
    """
    path = Path(picture)

    def found(file: str) -> str:
        beside = path.parent / file
        return str(beside) if beside.exists() else file

    return parse_job(_modern(read_settings(path)), f"{path}: ", found)


def picture_settings(job: Job, path: Path) -> dict[str, Any]:
    """What a picture at `path` shall carry: the settings that made it, and the versions.

    Files are named as seen from the picture, or from the working directory; without their folder if they are
    elsewhere: a picture that is passed on tells nothing of the disk where it was made.
    """

    def seen(file: str) -> str:
        whole = Path(os.path.abspath(file))
        for place in (Path(os.path.abspath(path.parent)), Path.cwd()):
            if whole.is_relative_to(place):
                return whole.relative_to(place).as_posix()
        return whole.name

    values, changed = (_dumped(job, seen, exclude_defaults=only) for only in (False, True))
    told = {key: value for key, value in values.items() if key in changed or key in _ALWAYS_TOLD}
    references = [{"images": one["images"], "scale": 1.0} | one for one in changed["references"]]
    return {key: told[key] for key in told if key != "output"} | {
        "references": references,
        "versions": _versions(),
    }


def parse_job(values: Mapping[str, Any], source: str = "", move: Move | None = None) -> Job:
    """Check settings; the first fault becomes one sentence.

    Args:
        values: as a TOML file holds them
        source: what the message begins with
        move: what becomes of every path; by default it stays

    Raises:
        ConfigError: see `load_job`
    """
    try:
        return Job.model_validate(values, context={} if move is None else {"move": move})
    except ValidationError as error:
        raise ConfigError(f"{source}{_explained(error.errors())}") from error


def has_settings(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a picture that says it carries settings of imprompt; they may be damaged."""
    try:
        with PngImageFile(Path(path)) as picture:  # pyright: ignore[reportArgumentType]
            return SETTINGS_KEY in picture.info
    except Exception:  # as in read_settings
        return False


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that `save_picture` wrote into a picture.

    Raises:
        ImageError: no such picture, or one that was not written by imprompt
    """
    if fault := find_file_fault(path):
        raise ImageError(fault)
    try:
        with PngImageFile(Path(path)) as picture:  # pyright: ignore[reportArgumentType]
            settings = json.loads(picture.info[SETTINGS_KEY])
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # a hostile file may make a decoder fail in any way
        raise ImageError(f"{path} holds no settings of imprompt") from error
    if not isinstance(settings, dict):
        raise ImageError(f"{path} holds no settings of imprompt")
    return settings


def _dumped(job: Job, move: Move, *, exclude_defaults: bool) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude_defaults=exclude_defaults, context={"move": move})


def _modern(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a picture as a job's; once they were names of pictures and one scale for all."""
    values = {key: value for key, value in settings.items() if key not in _OF_THE_FILE}
    if "scale" not in values:
        return values
    scale, names = values.pop("scale"), values.get("references", ())
    return {**values, "references": [{"images": name, "scale": scale} for name in names]}


def _explained(faults: Sequence[Any]) -> str:
    """The first validation fault as a sentence, with the nearest known key for an unknown one."""
    fault = _first(faults)
    kind, where = fault["type"], _named(fault["loc"])
    if kind == "extra_forbidden":
        return _unknown_key(fault["loc"])
    if kind == "missing":
        return f"{where} is missing"
    if kind == "value_error":
        return f"{where}: {fault['ctx']['error']}".removeprefix(": ")
    if kind == "string_unicode":
        return f"{where} {_short(fault['input'])} holds half of a surrogate pair, no character; leave it out"
    if kind in ("too_short", "string_too_short"):
        return f"{where} must not be empty"
    return f"{where or 'a job'} {_demand(fault)}, not {_short(fault['input'])}"


def _first(faults: Sequence[Any]) -> Any:
    """The first fault; of a value that may be of several kinds, the fault found deepest in it."""
    place = _named(faults[0]["loc"])
    same = [fault for fault in faults if _named(fault["loc"]).startswith(place)]
    return max(same, key=lambda fault: (fault["type"] != "string_type", len(fault["loc"])))


def _demand(fault: Any) -> str:
    if fault["type"] in ("too_long", "tuple_type"):
        longest = fault.get("ctx", {}).get("max_length")
        return f"must be a list of {longest} numbers" if longest else "must be a list"
    return (
        fault["msg"]
        .replace("Input should be", "must be")
        .replace("a valid integer", "a whole number")
        .replace("a valid", "a")
    )


def _unknown_key(loc: Sequence[str | int]) -> str:
    *group, key = loc
    near = difflib.get_close_matches(str(key), _known_keys(group), n=1)
    place = f" in {_named(group)}" if group else ""
    return f"unknown key {key!r}{place}" + (f"; did you mean {near[0]!r}?" if near else "")


def _known_keys(group: Sequence[str | int]) -> list[str]:
    if not group:
        return [*Job.model_fields, "size"]
    return [*(JobReference if group[0] == "references" else JobControl).model_fields]


def _named(place: Sequence[str | int]) -> str:
    """("references", 0, "scale", "float") → "references[0].scale": keys and positions only, as in a file."""
    known = {*_known_keys([]), *_known_keys(["references"]), *_known_keys(["controls"])}
    parts = (part for part in place if isinstance(part, int) or part in known)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "so large a number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _toml(values: Mapping[str, Any]) -> str:
    """Settings, then each group of a list of groups under its own heading."""
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
    # JSON's strings, numbers and truth values are TOML's, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("imprompt", "torch", "diffusers")}
