"""Every number of a report as plain data: what the page shows, `summary.json` has."""

from typing import Any

from imprompt.report.blocks import Block, Cell, Report, Table
from imprompt.report.charts import Chart, Ends
from imprompt.report.dots import DotPlot


def report_data(report: Report) -> dict[str, Any]:
    """The report's words and numbers, in the page's order, without its pictures."""
    return {
        "title": report.title,
        "lead": report.lead,
        "figures": [{"name": tile.name, "value": tile.value, "beside": tile.beside} for tile in report.tiles],
        "sections": [
            {
                "title": section.title,
                "text": section.text,
                "blocks": [block_data(block) for block in section.blocks],
            }
            for section in report.sections
        ],
        "facts": dict(report.facts),
    }


def block_data(block: Block) -> dict[str, Any]:
    """A block's words and numbers; of a grid what its rows and columns are."""
    told = {"kind": type(block).__name__.lower(), "title": block.title, "note": block.note}
    if isinstance(block, Table):
        columns = [column.name for column in block.headings]
        return told | {"columns": columns, "rows": [list(row) for row in block.rows]}
    if isinstance(block, (Chart, DotPlot)):
        table = chart_table(block)
        return told | {"columns": list(table.columns), "rows": [list(row) for row in table.rows]}
    return told | {"columns": list(block.titles), "rows": [[row.label] for row in block.rows]}


def chart_table(chart: Chart | DotPlot) -> Table:
    """A chart's numbers as a table, for those who cannot see it or want to copy them."""
    rows = _dot_rows(chart) if isinstance(chart, DotPlot) else _line_rows(chart)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(columns, [[row.get(name) for name in columns] for row in rows])


def _dot_rows(plot: DotPlot) -> list[dict[str, Cell]]:
    dots = [{"": dot.name, "value": dot.value} | _ends("", dot.ends) for dot in plot.dots]
    return dots + [{"": name, "value": value} for name, value in plot.marks]


def _line_rows(chart: Chart) -> list[dict[str, Cell]]:
    """One row a point: its line and its name where there are several, then x and y, each with its ends."""
    up, rows = chart.up or "value", []
    for line in chart.lines:
        for index, (x, y) in enumerate(line.points):
            row: dict[str, Cell] = {"line": line.label} if len(chart.lines) > 1 else {}
            row |= {"": line.names[index]} if line.names else {}
            row |= {chart.across: x} | _ends(
                f"{chart.across} ", line.sideways[index] if line.sideways else None
            )
            row |= {up: y} | _ends(f"{up} ", line.intervals[index] if line.intervals else None)
            rows.append(row)
    return rows


def _ends(prefix: str, ends: Ends | None) -> dict[str, Cell]:
    return {} if ends is None else {f"{prefix}low": ends[0], f"{prefix}high": ends[1]}
