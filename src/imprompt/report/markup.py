"""Blocks as HTML: tables whose numbers stand under one another, charts, grids of pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image, ImageOps

from imprompt.report.blocks import Block, Cell, Column, Grid, Section, Table, Tile
from imprompt.report.charts import Chart
from imprompt.report.data import chart_table
from imprompt.report.dots import DotPlot
from imprompt.report.interval import Interval
from imprompt.report.pictures import Embedded
from imprompt.report.sheets import Row
from imprompt.report.skeleton import chart_figure, safe, tile

SMALLEST_CELL, LARGEST_CELL = 128, 256
"""A picture in a grid is shown no smaller and no larger than this, in pixels of the file."""

MOST_NUMBERS = 60
"""Of a chart with more points than this the numbers are in `summary.json` alone."""

_WIDE = 6
"""A grid of more columns than this has the page's whole width for each row."""

Embedding = Callable[[Image.Image], Embedded]

STYLE = """
.lead{max-width:46rem}
section>p{text-wrap:pretty}
h3{font-size:.975rem;font-weight:620}
.block{margin-top:1.6rem}
.block .note{margin:.1rem 0 .5rem}
table.data{width:auto;min-width:min(100%,34rem);font-size:.875rem}
.data th,.data td{padding:.34rem 0 .34rem 1.6rem;text-align:right;border-top:1px solid var(--line);
white-space:nowrap;font-weight:400;color:var(--ink);width:auto;vertical-align:baseline}
.data thead th{border-top:0;color:var(--quiet);font-size:.8125rem;vertical-align:bottom;white-space:normal}
.data th:first-child,.data td:first-child{padding-left:0;text-align:left;white-space:normal;min-width:7rem}
.data .words{text-align:left}
.data small{color:var(--quiet);font-size:.78rem;display:inline-block}
.data .ends small{min-width:var(--room);text-align:left;margin-left:.4em}
.data .strong th,.data .strong td{font-weight:640}
.data .strong td small{font-weight:400}
.stacks{display:grid;grid-template-columns:repeat(var(--stacks),1fr);gap:.4rem 2.2rem;margin-top:.5rem}
.titles{display:grid;grid-template-columns:repeat(var(--n),1fr);align-items:end;text-align:center;
color:var(--quiet);font-size:.75rem;line-height:1.25;padding-bottom:.3rem}
.titles span{padding:0 .2rem;overflow-wrap:break-word;min-width:0}
.strip{margin-bottom:.75rem}
.strip div{position:relative}
.strip div::after{content:"";position:absolute;inset:0;pointer-events:none;background:
repeating-linear-gradient(90deg,transparent 0 calc(100%/var(--n) - 3px),
var(--paper) calc(100%/var(--n) - 3px) calc(100%/var(--n)))}
.strip figcaption{font-size:.75rem;line-height:1.35;color:var(--quiet);padding-top:.2rem}
.chart details{font-size:.8125rem}
.chart summary,.more summary{font-size:.8125rem;color:var(--quiet)}
.chart table.data{min-width:0;font-size:.8125rem}
@media(max-width:46rem){.stacks{grid-template-columns:1fr}.wide .strip,.wide .titles{min-width:36rem}
.data th,.data td{padding-left:1rem}
.data small,.data .ends small{display:block;margin:0;min-width:0;text-align:right}}
"""


def section_html(section: Section, embedding: Embedding) -> str:
    """A heading, its sentences, its blocks; charts that follow one another stand side by side."""
    text = f"<p>{safe(section.text)}</p>" if section.text else ""
    parts, charts = [], []
    for block in section.blocks:
        if isinstance(block, (Chart, DotPlot)):
            charts.append(chart_html(block))
            continue
        parts += [*_side_by_side(charts), block_html(block, embedding)]
        charts = []
    parts += _side_by_side(charts)
    return f"<section><h2>{safe(section.title)}</h2>{text}{''.join(parts)}</section>"


def _side_by_side(charts: Sequence[str]) -> list[str]:
    return [f'<div class="charts">{"".join(charts)}</div>'] if charts else []


def block_html(block: Block, embedding: Embedding) -> str:
    """A block with its title and its note."""
    if isinstance(block, (Chart, DotPlot)):
        return chart_html(block)
    title = f"<h3>{safe(block.title)}</h3>" if block.title else ""
    note = f'<p class="note">{safe(block.note)}</p>' if block.note else ""
    inner = table_html(block) if isinstance(block, Table) else grid_html(block, embedding)
    return f'<div class="block">{title}{note}{inner}</div>'


def chart_html(chart: Chart | DotPlot) -> str:
    """A chart, and under it its numbers, if they are not too many, folded away."""
    table = chart_table(chart)
    if len(table.rows) > MOST_NUMBERS:
        return chart_figure(chart)
    return chart_figure(chart, f"<details><summary>In numbers</summary>{table_html(table)}</details>")


def table_html(table: Table) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    kinds = [_kind([row[place] for row in table.rows], column) for place, column in enumerate(table.headings)]
    heads = "".join(
        f'<th scope="col"{kind}>{safe(column.name)}</th>'
        for column, kind in zip(table.headings, kinds, strict=True)
    )
    body = "".join(_row(table, place, kinds) for place in range(len(table.rows)))
    inner = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="data">{inner}</table></div>'


def _row(table: Table, place: int, kinds: Sequence[str]) -> str:
    first, *others = table.rows[place]
    head, *columns = table.headings
    cells = "".join(
        f"<td{kind}>{cell_html(cell, column)}</td>"
        for cell, column, kind in zip(others, columns, kinds[1:], strict=True)
    )
    strong = ' class="strong"' if place in table.strong else ""
    return f'<tr{strong}><th scope="row">{cell_html(first, head)}</th>{cells}</tr>'


def _kind(cells: Sequence[Cell], column: Column) -> str:
    """Words stand at the left; behind numbers there is as much room as the column's widest interval needs."""
    if any(isinstance(cell, str) for cell in cells):
        return ' class="words"'
    room = max((len(_ends(cell, column)) for cell in cells if isinstance(cell, Interval)), default=0)
    # Brackets, points and commas are narrower than digits.
    return f' class="ends" style="--room:{0.84 * room:.1f}ch"' if room else ""


def cell_html(cell: Cell, column: Column) -> str:
    """A cell: words as they are, numbers in their column's form, intervals in brackets behind their mean."""
    if isinstance(cell, str):
        return safe(cell)
    if isinstance(cell, Interval):
        said, ends = number(cell.mean, column, _largest(cell)), _ends(cell, column)
    else:
        said, ends = "–" if cell is None else number(cell, column), ""
    unit = " %" if column.percent and said != "–" else ""
    return f"{said}{unit} <small>{ends}</small>"


def _ends(cell: Interval, column: Column | Tile) -> str:
    size = _largest(cell)
    return f"[{number(cell.low, column, size)}, {number(cell.high, column, size)}]"


def _largest(cell: Interval) -> float:
    return max(abs(cell.low), abs(cell.high))


def number(value: float | int, column: Column | Tile, size: float | int | None = None) -> str:
    """A number for people, with a true minus; a share in percent, without its sign; "–" for NaN.

    What its digits would round to nothing is written with a power of ten, if `size`, the size of all that
    stands with it, is as small.
    """
    if not math.isfinite(value):
        return "–"
    if isinstance(value, int) and not column.percent:
        return f"{value:,}".replace("-", "−")
    digits = 1 if column.percent else column.digits
    size = abs(value) if size is None else size
    if not column.percent and 0 < size < 0.5 * 10**-digits:
        return f"{value:.1e}".replace("e-0", "e-").replace("-", "−")
    rounded = f"{(100 if column.percent else 1) * value:,.{digits}f}"
    return (rounded.lstrip("-") if float(rounded.replace(",", "")) == 0 else rounded).replace("-", "−")


def tile_html(one: Tile, *, first: bool) -> str:
    """A key figure; its interval goes before what it is compared with."""
    mean = one.value.mean if isinstance(one.value, Interval) else one.value
    unit = "<small>%</small>" if one.percent else ""
    said = [one.beside] if one.beside else []
    if isinstance(one.value, Interval):
        said.insert(0, _ends(one.value, one))
    return tile(number(mean, one) + unit, one.name, " · ".join(said), first=first)


def grid_html(grid: Grid, embedding: Embedding) -> str:
    """Rows of pictures, each row one image, in two stacks where there is room."""
    if not grid.rows:
        return ""
    count = len(grid.titles)
    stacks = 1 if count > _WIDE or len(grid.rows) <= 2 else 2
    per_stack = -(-len(grid.rows) // stacks)
    titles = "".join(f"<span>{safe(title)}</span>" for title in grid.titles)
    shown = "".join(
        f'<div><div class="titles">{titles if any(grid.titles) else ""}</div>'
        f"{''.join(_strip(row, grid, embedding) for row in grid.rows[start : start + per_stack])}</div>"
        for start in range(0, len(grid.rows), per_stack)
    )
    wide = " wide" if count > _WIDE else ""
    style = f"--n:{count};--stacks:{stacks}"
    return f'<div class="scroll"><div class="stacks{wide}" style="{style}">{shown}</div></div>'


def _strip(row: Row, grid: Grid, embedding: Embedding) -> str:
    image = embedding(strip(row.pictures))
    said = f"{row.label}: {', '.join(grid.titles)}" if row.label else ", ".join(grid.titles)
    label = f"<figcaption>{safe(row.label)}</figcaption>" if row.label else ""
    return (
        f'<figure class="strip"><div><img class="grid" src="{image.source}" width="{image.width}" '
        f'height="{image.height}" loading="lazy" alt="{safe(said)}"></div>{label}</figure>'
    )


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side in squares of one size; those that are no squares have white beside them."""
    side = min(max(SMALLEST_CELL, *(max(picture.size) for picture in pictures)), LARGEST_CELL)
    whole = Image.new("RGB", (side * len(pictures), side), "white")
    for place, picture in enumerate(pictures):
        cell = ImageOps.pad(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color="white")
        whole.paste(cell, (place * side, 0))
    return whole


def shortened(block: Block, rows: int) -> Block:
    """A table or a grid with its first rows only, and a word on that; others as they are."""
    if not isinstance(block, (Table, Grid)) or len(block.rows) <= rows:
        return block
    said = f"{rows} of {len(block.rows)} rows are here; the others are in index.html."
    return replace(block, rows=block.rows[:rows], note=f"{block.note} {said}".strip())
