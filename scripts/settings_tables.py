"""Write the settings of `imprompt train` as Markdown tables, from the classes that read them.

python scripts/settings_tables.py docs/training-settings.md      replaces the tables in the page
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imprompt.training.config import TrainingConfig, parse_config
from imprompt.training.presets import PRESETS

BEGIN = "<!-- made by python scripts/settings_tables.py docs/training-settings.md -->"
END = "<!-- end of what is made -->"
COLUMNS = ("mini", "sd15")
"""Presets whose values stand in the tables."""


def insert_tables(page: str) -> str:
    """Return a Markdown page that has both marks, with the current tables between them."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{build_tables()}\n{END}{rest.split(END)[1]}"


def build_tables() -> str:
    """Return a table for each group of settings, and one of the differences between presets."""
    presets = {name: resolve_preset(name) for name in COLUMNS}
    parts = [_group_table(TrainingConfig, presets)]
    for name, field in TrainingConfig.model_fields.items():
        if group := _group_of(field):
            values = {preset: value[name] for preset, value in presets.items()}
            summary = (group.__doc__ or "").partition("\n")[0]
            parts.append(f"`[{name}]`: {summary}\n\n{_group_table(group, values)}")
    return "\n".join([*parts, _difference_table()])


def resolve_preset(preset: str) -> dict[str, Any]:
    """Return all settings of a preset, defaults included."""
    return parse_config({"preset": preset, "output": ""}, preset).model_dump(mode="json")


def _group_table(group: type[BaseModel], values: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["| key | " + " | ".join(f"in `{name}`" for name in values) + " | meaning |"]
    head.append("| --- |" + " --- |" * len(values) + " --- |")
    return "\n".join([*head, *_rows(group, values)]) + "\n"


def _rows(group: type[BaseModel], values: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[str]:
    for name, field in group.model_fields.items():
        inner = _group_of(field)
        if inner is None:
            cells = " | ".join(_cell(value[name]) for value in values.values())
            yield f"| `{prefix}{name}` | {cells} | {_describe(field)} |"
        elif group is not TrainingConfig:
            yield from _rows(inner, {preset: value[name] for preset, value in values.items()}, f"{name}.")


def _group_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the group of settings that a field holds, if it holds one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _describe(field: FieldInfo) -> str:
    """Return a field's docstring and the words that it accepts."""
    text = " ".join((field.description or "").split())
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    choices = ", ".join(f'`"{word}"`' for word in words)
    return f"{text} One of {choices}." if choices else text


def _cell(value: Any) -> str:
    """Return a value in TOML, as code; nothing for an empty string."""
    return f"`{_toml(value)}`" if value != "" else ""


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else f"{value}"


def _difference_table() -> str:
    """Return how each preset differs from the first one of its base."""
    lines = ["| preset | differs from | in |", "| --- | --- | --- |"]
    for name in PRESETS:
        first = COLUMNS[0] if name.startswith(COLUMNS[0]) else COLUMNS[1]
        if name not in COLUMNS:
            differences = _flatten(resolve_preset(name)).items() - _flatten(resolve_preset(first)).items()
            text = ", ".join(f"`{key} = {value}`" for key, value in sorted(differences) if key != "preset")
            lines.append(f"| `{name}` | `{first}` | {text} |")
    return "\n".join(lines) + "\n"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _toml(value)
    return flat


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(insert_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
