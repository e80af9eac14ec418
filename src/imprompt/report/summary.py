"""Every number of a page as plain data, for `summary.json`."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.report.blocks import Block, Cell, Grid, Report, Table
from imprompt.report.charts import Chart, Ends


def collect_report_data(report: Report) -> dict[str, Any]:
    """Return the report's words and numbers in the page's order, without its pictures."""
    return {
        "title": report.title,
        "lead": report.lead,
        "figures": [
            {"name": one.name, "value": one.value, "beside": one.comparison} for one in report.key_figures
        ],
        "sections": [
            {
                "title": section.title,
                "text": section.text,
                "blocks": [collect_block_data(block) for block in section.blocks],
            }
            for section in report.sections
        ],
        "facts": dict(report.facts),
    }


def collect_block_data(block: Block) -> dict[str, Any]:
    """Return a block's words and numbers; of a grid its titles and labels."""
    kind = type(block).__name__.lower()
    if not isinstance(block, (Table, Chart, Grid)):
        return {"kind": kind, **dataclasses.asdict(block)}
    if isinstance(block, Grid):
        columns, rows = list(block.titles), [[row.label] for row in block.rows]
    else:
        table = block if isinstance(block, Table) else make_chart_table(block)
        columns, rows = [column.name for column in table.headings], [list(row) for row in table.rows]
    return {"kind": kind, "title": block.title, "note": block.note, "columns": columns, "rows": rows}


def make_chart_table(chart: Chart) -> Table:
    """Return a chart's numbers as a table, for those who cannot see it or want to copy them.

    A point is a row: its line if there are several, its name, x and y with the ends of their intervals.
    """
    y_label, rows = chart.y_label or "value", []
    for line in chart.lines:
        for index, (x, y) in enumerate(line.points):
            row: dict[str, Cell] = {"line": line.label} if len(chart.lines) > 1 else {}
            row |= {"": line.names[index]} if line.names else {}
            x_ends = line.x_intervals[index] if line.x_intervals else None
            row |= {chart.x_label: x} | _ends(f"{chart.x_label} ", x_ends)
            row |= {y_label: y} | _ends(f"{y_label} ", line.intervals[index] if line.intervals else None)
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(columns, [[row.get(name) for name in columns] for row in rows])


def _ends(prefix: str, ends: Ends | None) -> dict[str, Cell]:
    return {} if ends is None else {f"{prefix}low": ends[0], f"{prefix}high": ends[1]}


def to_plain(value: Any) -> Any:
    """Return a value as JSON can hold it: text for paths, None for what is not finite, objects for classes.

    A class with a method `to_json` chooses its names itself.
    """
    if hasattr(value, "to_json"):
        return to_plain(value.to_json())
    if dataclasses.is_dataclass(value):
        return to_plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return to_plain(dict(zip(names, value, strict=True)))
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
