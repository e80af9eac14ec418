"""Settings read from one TOML file: typed and closed; an unknown key is an error that names a near one."""

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from imprompt.errors import ConfigError
from imprompt.runtime.files import file_fault, shorten

MAX_TOML_BYTES = 1024 * 1024
"""Of a recipe or a job; one of a hundred references has 20 kB."""

MAX_KEY_PARTS = 64
"""Parts of a dotted key; none of ours has more than three."""

MAX_WHOLE_NUMBER = 2**63 - 1
"""The largest whole number that TOML promises to hold; the smallest is its negative minus one."""

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_KEY_PARTS},}}")


_AMERICAN = {"centre": "center", "normalised average": "normalized average"}
"""Earlier spellings of the values of options, which are still read."""


def normalize_spelling(value: object) -> object:
    """Return the American spelling of an option's value; other values are returned as they are."""
    return _AMERICAN.get(value, value) if isinstance(value, str) else value


class ClosedSettings(BaseModel):
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
        ConfigError: no such file, one that cannot be read, no TOML, one that is larger, deeper or holds
            larger numbers than the limits above, or a setting without `=`
    """
    if fault := file_fault(path):
        raise ConfigError(fault)
    try:
        values = _parse(_text(path, kind), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such {kind}") from error
    except OSError as error:  # a folder
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # no TOML, no UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for setting in settings:
        replace_setting(values, setting)
    return values


def _text(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_TOML_BYTES + 1)
    if len(data) > MAX_TOML_BYTES:
        size = path.stat().st_size
        raise ConfigError(f"{path} has {size:,} bytes; a {kind} has at most {MAX_TOML_BYTES:,}: split it")
    return data.decode("utf-8")


def _parse(text: str, path: Path | str) -> dict[str, Any]:
    """TOML → values, none of them deeper or larger than ours can be.

    Raises:
        ConfigError: one of the limits above, or more digits than Python reads
        ValueError: no TOML
    """
    if long := _LONG_KEY.search(text):
        raise ConfigError(f"{path}: {shorten(long[0])!r} is a key of more than {MAX_KEY_PARTS} parts")
    try:
        values = tomllib.loads(text)
        _check_numbers(values, path)
    except RecursionError:
        raise ConfigError(f"{path} holds lists or groups inside one another, too deep to be read") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:
        if "digits" not in str(error):
            raise
        raise ConfigError(f"{path} holds a number of more than 4,300 digits, too large to be read") from error
    return values


def _check_numbers(value: object, path: Path | str, key: str = "") -> None:
    """Refuse whole numbers that TOML does not promise to hold, wherever they are."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, path, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, path, key)
    elif isinstance(value, int) and not -MAX_WHOLE_NUMBER - 1 <= value <= MAX_WHOLE_NUMBER:
        digits = int(value.bit_length() * 0.30103) + 1
        raise ConfigError(
            f"{path}: {shorten(key)} is a whole number of about {digits} digits; the largest is "
            f"{MAX_WHOLE_NUMBER}"
        )


def replace_setting(values: dict[str, Any], setting: str) -> None:
    """Put one `key=value` into nested settings; a value that is no TOML is taken as a string."""
    key, separator, text = setting.partition("=")
    if not separator:
        raise ConfigError(f"--set takes key=value, not {setting!r}")
    try:
        value = _parse(f"value = {text}", f"--set {key}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *groups, last = key.strip().split(".")
    if len(groups) >= MAX_KEY_PARTS:
        raise ConfigError(f"--set {shorten(key)!r} is a key of more than {MAX_KEY_PARTS} parts")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}: {group} is a value, not a group of settings")
    values[last] = value


def find_setting(values: Any, key: str, otherwise: Any = None) -> Any:
    """Return the value of a dotted key in nested groups, or `otherwise` if it is missing."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return otherwise if values is None else values


def explain(
    fault: Any, kind: type[BaseModel], counterpart: Callable[[str], str | None] = lambda _: None
) -> str:
    """Put a validation fault into a sentence; for an unknown key, say which one may be meant.

    Args:
        fault: pydantic's
        kind: of the settings
        counterpart: an unknown key → a clause that says what it is called here; None where it cannot tell.
            A key that is known elsewhere, or is written almost like one, is named without it.
    """
    place = [str(part) for part in fault["loc"]]
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        given = fault.get("input")
        said = f" (it is {given!r})" if isinstance(given, str | int | float) and place else ""
        return f"{'.'.join(place)}: {message}{said}" if place else message
    key, known = place[-1], list(list_keys(kind))
    unknown = f"unknown key {shorten(key)!r}"
    if (meaning := counterpart(key)) and key not in dict(known):
        return f"{unknown}: {meaning}"
    near = find_nearest(key, (name for name, _ in known))
    meant = " or ".join(repr(full) for name, full in known if name == near)
    return unknown + (f"; did you mean {meant}?" if meant else "")


ALLOWED_SLIPS = 2
"""Letters that a misspelling of a long word gets wrong; one of a word of fewer than six letters."""


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """Find the word that this one is a misspelling of; None if it resembles none.

    A guess at what only sounds alike would send people to the wrong setting.
    """
    allowed = ALLOWED_SLIPS if len(word) >= 6 else 1
    near = [one for one in known if abs(len(one) - len(word)) <= allowed]
    slips = {one: _count_slips(word, one) for one in near}
    found = min(slips, key=lambda one: slips[one], default=None)
    return found if found is not None and slips[found] <= allowed else None


def _count_slips(first: str, second: str) -> int:
    """Letters left out, added, replaced, or swapped with their neighbours (optimal string alignment)."""
    earlier, before = [0], list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        costs = [row]
        for column, other in enumerate(second, 1):
            cost = min(before[column] + 1, costs[-1] + 1, before[column - 1] + (letter != other))
            if row > 1 < column and (first[row - 2], second[column - 2]) == (other, letter):
                cost = min(cost, earlier[column - 2] + 1)
            costs.append(cost)
        earlier, before = before, costs
    return before[-1]


def list_keys(kind: type[BaseModel], group: str = "") -> Iterator[tuple[str, str]]:
    """Every key that settings know, those of groups too, and what to write for it: `group.key`."""
    for name, field in kind.model_fields.items():
        yield name, f"{group}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from list_keys(inner, f"{group}{name}.")


def resolve_in_cache(folder: str) -> Path:
    """Where a recipe's folder is: as it stands if it begins with `/` or `.`, else in the cache."""
    if folder.startswith(("/", ".")):
        return Path(folder)
    cache = os.environ.get("IMPROMPT_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "imprompt") / folder
