"""The settings of `imprompt train` as Markdown tables, made from the classes that read them.

python -m imprompt.training.settings_tables docs/training-settings.md   puts them between the page's two marks
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

BEGIN = "<!-- made by python -m imprompt.training.settings_tables docs/training-settings.md -->"
END = "<!-- end of what is made -->"
SHOWN = ("mini", "sd15")
"""Presets whose values stand in the tables."""


def with_tables(page: str) -> str:
    """Put the tables as they are now between the marks of a page.

    Args:
        page: Markdown that has both marks
    """
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


def tables() -> str:
    """A table for each group of settings, and one of how presets differ."""
    shown = {name: resolved(name) for name in SHOWN}
    parts = [_group(TrainingConfig, shown)]
    for name, field in TrainingConfig.model_fields.items():
        if inner := _settings(field):
            values = {preset: value[name] for preset, value in shown.items()}
            parts.append(f"`[{name}]`: {_sentence(inner)}\n\n{_group(inner, values)}")
    return "\n".join([*parts, _differences()])


def resolved(preset: str) -> dict[str, Any]:
    """Everything that a preset says, and the defaults of what it does not."""
    return parse_config({"preset": preset, "output": ""}, preset).model_dump(mode="json")


def _group(kind: type[BaseModel], values: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["| key | " + " | ".join(f"in `{name}`" for name in values) + " | what it says |"]
    head.append("| --- |" + " --- |" * len(values) + " --- |")
    return "\n".join([*head, *_rows(kind, values)]) + "\n"


def _rows(kind: type[BaseModel], values: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = _settings(field)
        if inner is None:
            cells = _cells([value[name] for value in values.values()])
            yield f"| `{prefix}{name}` | {cells} | {_meaning(field)} |"
        elif kind is not TrainingConfig:
            yield from _rows(inner, {preset: value[name] for preset, value in values.items()}, f"{name}.")


def _settings(field: FieldInfo) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _meaning(field: FieldInfo) -> str:
    """What its docstring says, and which words it takes."""
    said = " ".join((field.description or "").split())
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    choices = ", ".join(f'`"{word}"`' for word in words)
    return f"{said} One of {choices}." if choices else said


def _sentence(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _cells(values: list[Any]) -> str:
    return " | ".join(_toml(value) for value in values)


def _toml(value: Any) -> str:
    """A value as a configuration would say it, as code; nothing for an empty one."""
    return f"`{_written(value)}`" if value != "" else ""


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else f"{value}"


def _differences() -> str:
    """Where each preset differs from the one of its base's first."""
    lines = ["| preset | differs from | in |", "| --- | --- | --- |"]
    for name in PRESETS:
        first = SHOWN[0] if name.startswith(SHOWN[0]) else SHOWN[1]
        if name not in SHOWN:
            found = _flat(resolved(name)).items() - _flat(resolved(first)).items()
            said = ", ".join(f"`{key} = {value}`" for key, value in sorted(found) if key != "preset")
            lines.append(f"| `{name}` | `{first}` | {said} |")
    return "\n".join(lines) + "\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _written(value)
    return flat


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
