"""Settings of a TOML file: typed and closed. An unknown key is an error that suggests a similar one."""

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from imprompt.errors import ConfigError
from imprompt.runtime.files import find_file_fault, shorten

MAX_TOML_BYTES = 1024 * 1024
"""The largest recipe or job, in bytes; a job of a hundred references has 20 kB."""

MAX_KEY_PARTS = 64
"""The largest number of parts of a dotted key; known keys have at most three."""

MAX_WHOLE_NUMBER = 2**63 - 1
"""The largest whole number that TOML guarantees; the smallest one is its negative minus one."""

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_KEY_PARTS},}}")


_AMERICAN = {"centre": "center", "normalised average": "normalized average"}
"""Earlier spellings of the values of options, which are still read."""


def normalize_spelling(value: object) -> object:
    """Return the American spelling of an option's value; other values are returned as they are."""
    return _AMERICAN.get(value, value) if isinstance(value, str) else value


class ClosedSettings(BaseModel):
    """A frozen group of settings that knows all its keys."""

    # The docstring below a field is its description, from which the tables in docs are made.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def read_toml(path: Path, settings: Sequence[str] = (), *, kind: str = "recipe") -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: path of the file
        settings: `key=value` (dotted keys, TOML values) that override the file
        kind: the kind of file in messages

    Raises:
        ConfigError: the file is missing, cannot be read, is no TOML, or exceeds one of the limits above; or a
            setting has no `=`
    """
    if fault := find_file_fault(path):
        raise ConfigError(fault)
    try:
        values = _parse(_read_text(path, kind), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such {kind}") from error
    except OSError as error:  # a folder
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # no TOML, no UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for setting in settings:
        replace_setting(values, setting)
    return values


def _read_text(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_TOML_BYTES + 1)
    if len(data) > MAX_TOML_BYTES:
        size = path.stat().st_size
        raise ConfigError(f"{path} has {size:,} bytes; a {kind} has at most {MAX_TOML_BYTES:,}: split it")
    return data.decode("utf-8")


def _parse(text: str, path: Path | str) -> dict[str, Any]:
    """Parse TOML and check its depth and its numbers.

    Raises:
        ConfigError: the text exceeds a limit above, or a number has more digits than Python reads
        ValueError: the text is no TOML
    """
    if long := _LONG_KEY.search(text):
        raise ConfigError(f"{path}: {shorten(long[0])!r} is a key of more than {MAX_KEY_PARTS} parts")
    try:
        values = tomllib.loads(text)
        _check_numbers(values, path)
    except RecursionError:
        raise ConfigError(f"{path} holds lists or groups nested too deep to be read") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:
        if "digits" not in str(error):
            raise
        raise ConfigError(f"{path} holds a number of more than 4,300 digits, too large to be read") from error
    return values


def _check_numbers(value: object, path: Path | str, key: str = "") -> None:
    """Refuse whole numbers outside the range that TOML guarantees."""
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
    """Override one `key=value` in nested settings; a value that is no TOML is taken as a string."""
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


def explain_fault(
    error: ValidationError,
    kind: type[BaseModel],
    counterpart: Callable[[str], str | None] = lambda _: None,
    *,
    extra_keys: Collection[str] = (),
) -> str:
    """Put the first fault of a validation into a sentence; for an unknown key, suggest a known one.

    Args:
        error: pydantic's
        kind: the class of the settings
        counterpart: returns a clause that says what an unknown key is called here, or None if it does not
            know. It is not asked about a key that is known elsewhere
        extra_keys: keys that are accepted and are no fields
    """
    faults: list[Any] = list(error.errors())
    known = [*list_keys(kind), *((key, key) for key in extra_keys)]
    keys = {key for key, _ in known}
    place = _name_place(faults[0]["loc"], keys)
    # A value that may have several types has a fault for each; the one that lies deepest says most.
    same = [fault for fault in faults if place and _name_place(fault["loc"], keys).startswith(place)]
    fault = max(same or faults[:1], key=lambda fault: (fault["type"] != "string_type", len(fault["loc"])))
    where = _name_place(fault["loc"], keys)
    match fault["type"]:
        case "extra_forbidden":
            return _explain_unknown_key(fault["loc"], where, known, counterpart)
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where}: {fault['ctx']['error']}".removeprefix(": ")
        case "string_unicode":
            return (
                f"{where} {_quote(fault['input'])} holds half of a surrogate pair, no character; leave it out"
            )
        case "too_short" | "string_too_short":
            return f"{where} must not be empty"
        case "union_tag_invalid" | "union_tag_not_found":
            return fault["msg"]
    return f"{where or 'the file'} {_explain_demand(fault)}, not {_quote(fault['input'])}"


def _name_place(place: Sequence[str | int], keys: Collection[str]) -> str:
    """("references", 0, "scale", "float") → "references[0].scale": keys and positions only, as in a file."""
    parts = (part for part in place if isinstance(part, int) or part in keys)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _explain_unknown_key(
    place: Sequence[str | int],
    group: str,
    known: Sequence[tuple[str, str]],
    counterpart: Callable[[str], str | None],
) -> str:
    """Name the key; in a list of groups, suggest a key of that group only."""
    key = str(place[-1])
    unknown = f"unknown key {shorten(key)!r}"
    if any(isinstance(part, int) for part in place):
        known = [(name, name) for name, full in known if full == f"{place[0]}.{name}"]
        unknown = f"{unknown} in {group}"
    elif (meaning := counterpart(key)) and key not in dict(known):
        return f"{unknown}: {meaning}"
    near = find_nearest(key, (name for name, _ in known))
    similar = " or ".join(repr(full) for name, full in known if name == near)
    return unknown + (f"; did you mean {similar}?" if similar else "")


def _explain_demand(fault: Any) -> str:
    if fault["type"] in ("too_long", "tuple_type"):
        length = fault.get("ctx", {}).get("max_length")
        return f"must be a list of {length} values" if length else "must be a list"
    return (
        fault["msg"]
        .partition(", unable to parse")[0]
        .replace("Input should be", "must be")
        .replace("a valid integer", "a whole number")
        .replace("a valid", "a")
    )


def _quote(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers of more than 4,300 digits.
        return "so large a number"
    return text if len(text) <= 60 else f"{text[:57]}..."


ALLOWED_SLIPS = 2
"""Number of wrong letters in a misspelling of a long word; a word of fewer than six letters has one."""


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word of which this one is a misspelling; None if it resembles none.

    A word that is merely similar would send people to the wrong setting.
    """
    allowed = ALLOWED_SLIPS if len(word) >= 6 else 1
    candidates = [other for other in known if abs(len(other) - len(word)) <= allowed]
    slips = {other: _count_slips(word, other) for other in candidates}
    nearest = min(slips, key=lambda other: slips[other], default=None)
    return nearest if nearest is not None and slips[nearest] <= allowed else None


def _count_slips(first: str, second: str) -> int:
    """Count letters that are missing, added, replaced or swapped (optimal string alignment)."""
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
    """Yield every key of the settings and its groups, with its full name `group.key`."""
    for name, field in kind.model_fields.items():
        yield name, f"{group}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from list_keys(inner, f"{group}{name}.")
