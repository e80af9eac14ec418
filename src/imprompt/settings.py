"""Settings read from one TOML file: typed and closed; an unknown key is an error that names a near one."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from imprompt.errors import ConfigError


class Closed(BaseModel):
    """A frozen group of settings that knows all its keys."""

    # The docstring below a field is its description; tables in docs are made of these.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def read_toml(path: Path, settings: Sequence[str] = (), *, kind: str = "recipe") -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: of the file
        settings: `key=value` (dotted keys, TOML values) that replace what the file says
        kind: what messages call such a file

    Raises:
        ConfigError: no such file, one that cannot be read, no TOML, or a setting without `=`
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such {kind}") from error
    except OSError as error:  # a folder
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for setting in settings:
        replace_setting(values, setting)
    return values


def replace_setting(values: dict[str, Any], setting: str) -> None:
    """Put one `key=value` into nested settings; a value that is no TOML is taken as a string."""
    key, separator, text = setting.partition("=")
    if not separator:
        raise ConfigError(f"--set takes key=value, not {setting!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *groups, last = key.strip().split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}: {group} is a value, not a group of settings")
    values[last] = value


def explain(fault: Any, kind: type[BaseModel]) -> str:
    """A validation fault as a sentence, with the nearest known key for an unknown one."""
    place = [str(part) for part in fault["loc"]]
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        given = fault.get("input")
        said = f" (it is {given!r})" if isinstance(given, str | int | float) and place else ""
        return f"{'.'.join(place)}: {message}{said}" if place else message
    known = dict(known_keys(kind))
    near = difflib.get_close_matches(place[-1], known, n=1)
    return f"unknown key {place[-1]!r}" + (f"; did you mean {known[near[0]]!r}?" if near else "")


def known_keys(kind: type[BaseModel], group: str = "") -> Iterator[tuple[str, str]]:
    """Every key that settings know, those of groups too, and what to write for it: `group.key`."""
    for name, field in kind.model_fields.items():
        yield name, f"{group}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from known_keys(inner, f"{group}{name}.")


def in_cache(folder: str) -> Path:
    """Where a recipe's folder is: as it stands if it begins with `/` or `.`, else in the cache."""
    if folder.startswith(("/", ".")):
        return Path(folder)
    cache = os.environ.get("IMPROMPT_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "imprompt") / folder
