"""Settings of a training run, read from one TOML file: typed and closed; an unknown key is an error."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from imprompt.errors import ConfigError


class Closed(BaseModel):
    """A frozen group of settings that knows all its keys."""

    # The docstring below a field is its description: docs/training.md is made of these.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoopSettings(Closed):
    """What the loop needs to know, whatever is trained."""

    seed: int = 0
    """Of the order of samples, of noise, and of new weights."""
    steps: int = Field(ge=1)
    """How many times the weights are changed."""
    batch_size: int = Field(default=64, ge=1)
    """Samples of one step, of all processes and passes together: a run means the same on any machine."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW."""
    warmup_steps: int = Field(default=200, ge=0)
    """The learning rate rises from zero, linearly, over this many first steps."""
    cooldown_steps: int = Field(default=0, ge=0)
    """The learning rate falls to zero, linearly, over this many last steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are cut to this length."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the averaged weights, which are those that are shown and saved; 0 for none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """In which frozen models compute on a GPU; the weights that are trained are float32."""
    log_every: int = Field(default=20, ge=1)
    """Steps between lines of the log."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    sample_every: int = Field(default=1000, ge=1)
    """Steps between sample grids."""
    keep: int = Field(default=2, ge=1)
    """How many checkpoints stay, beside the best."""


def read_toml(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file; `settings` are `key=value` (dotted keys, TOML values) that replace what it says.

    Raises:
        ConfigError: no such file, no TOML, or a setting without `=`
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: no such recipe") from error
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
