"""A report as one HTML file that loads nothing from outside, in full or small enough for a repository."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from imprompt.report.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Grid,
    KeyFigure,
    Markup,
    Report,
    Section,
    Table,
)
from imprompt.report.charts import Chart, draw_chart
from imprompt.report.look import SCRIPT, STYLE
from imprompt.report.numbers import Interval, format_mean, format_number, format_setting
from imprompt.report.pictures import InlinePicture, PictureRow, embed_picture, join_pictures
from imprompt.report.summary import make_chart_table

SMALL_BYTES = 580_000
"""A small page has no more bytes than this."""

ROW_BYTES = 90_000
"""A row of pictures has no more bytes than this in the whole page."""

LEAST_ROW_BYTES = 3_000
"""If a row of pictures would have fewer bytes than this, the small page has fewer rows instead."""

MOST_NUMBERS = 60
"""The numbers of a chart with more points than this are in `summary.json` alone."""

_WIDE = 6
"""The rows of a grid with more columns than this have the page's whole width."""

Embed = Callable[[Image.Image], InlinePicture]


def render_whole_page(report: Report) -> str:
    """Return the page as HTML, with everything in it."""
    return render_page(report, lambda picture: embed_picture(picture, ROW_BYTES))


def render_small_page(report: Report) -> str:
    """Return the page as HTML of at most `SMALL_BYTES`, with smaller pictures and perhaps fewer rows."""
    for candidate in _iterate_shorter(report):
        count, words = _count_picture_rows(candidate), len(render_page(candidate, _leave_out).encode())
        # In base64 a picture is a third larger.
        room = (SMALL_BYTES - words) * 3 // 4 // max(count, 1)
        if room < LEAST_ROW_BYTES and count:
            continue
        page = render_page(candidate, lambda picture, room=room: embed_picture(picture, room))
        if len(page.encode()) <= SMALL_BYTES:
            return page
    return render_page(_limit_rows(report, 0), _leave_out)


def _leave_out(picture: Image.Image) -> InlinePicture:
    return InlinePicture("", *picture.size)


def _iterate_shorter(report: Report) -> Iterator[Report]:
    """Yield the report, then with fewer and fewer rows."""
    yield report
    for rows in (96, 48, 24, 12, 6, 3, 1, 0):
        yield _limit_rows(report, rows)


def _limit_rows(report: Report, rows: int) -> Report:
    """Keep at most that many rows of each table and each grid."""
    sections = [
        replace(section, blocks=[_limit_block(block, rows) for block in section.blocks])
        for section in report.sections
    ]
    return replace(report, sections=sections)


def _limit_block(block: Block, rows: int) -> Block:
    """Keep the first rows of a table or a grid, and say so in its note; return other blocks as they are."""
    if not isinstance(block, (Table, Grid)) or len(block.rows) <= rows:
        return block
    remark = f"{rows} of {len(block.rows)} rows are here; the others are in index.html."
    return replace(block, rows=block.rows[:rows], note=f"{block.note} {remark}".strip())


def _count_picture_rows(report: Report) -> int:
    return sum(
        len(block.rows) for section in report.sections for block in section.blocks if isinstance(block, Grid)
    )


# The page


def render_page(report: Report, embed: Embed = _leave_out) -> str:
    """Return the page as HTML; `embed` turns each row of a grid into a picture inside the page."""
    figures = "".join(
        _render_key_figure(one, first=place == 0) for place, one in enumerate(report.key_figures)
    )
    header = [
        f'<p class="over">{escape(report.overline)}</p>' if report.overline else "",
        f'<h1>{escape(report.title)}</h1><p class="verdict">{escape(report.lead)}</p>',
        ""
        if report.progress is None
        else f'<div class="bar"><i style="width:{report.progress:.1%}"></i></div>',
        f'<p class="state">{escape(report.state)}</p>' if report.state else "",
        f'<dl class="figures">{figures}</dl>' if figures else "",
    ]
    sections = [_render_section(section, embed) for section in report.sections]
    if report.facts:
        sections.append(
            _render_section(Section("How it was made", blocks=[Facts({"": report.facts})]), embed)
        )
    numbers = f"Every number is in <code>{report.source}</code>, in the page's folder."
    footer = f"Written by <code>{report.author}</code>. {numbers}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)} · imprompt</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header>{''.join(header)}</header>{''.join(sections)}\n<footer>{footer}</footer>\n</main>\n"
        f'<dialog><img alt="The grid in full size"></dialog>\n<script>{SCRIPT}</script>\n'
        "</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Return a text as HTML."""
    return html.escape(text)


def _render_key_figure(one: KeyFigure, *, first: bool) -> str:
    """Write a key figure; its interval precedes what it is compared with."""
    mean, *remarks = _number_and_ends(one.value, percent=one.percent, digits=one.digits)
    remarks += [one.comparison] if one.comparison else []
    unit = "%" if one.percent else one.unit
    kind, small = ' class="first"' if first else "", f"<small>{unit}</small>" if unit else ""
    return (
        f"<div><dt>{escape(one.name)}</dt><dd{kind}>{escape(mean)}{small}</dd>"
        f"<span>{escape(' · '.join(remarks))}</span></div>"
    )


def _render_section(section: Section, embed: Embed) -> str:
    """Return a section as HTML; charts that follow one another are side by side."""
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    parts, charts = [], []
    for block in section.blocks:
        if isinstance(block, Chart):
            charts.append(_render_chart(block))
            continue
        parts += [*_side_by_side(charts), _render_block(block, embed)]
        charts = []
    parts += _side_by_side(charts)
    return f"<section><h2>{escape(section.title)}</h2>{text}{''.join(parts)}</section>"


def _side_by_side(charts: Sequence[str]) -> list[str]:
    return [f'<div class="charts">{"".join(charts)}</div>'] if charts else []


def _render_block(block: Table | Grid | Facts | Code | Markup, embed: Embed) -> str:
    if isinstance(block, Markup):
        return block.html
    if isinstance(block, Facts):
        return _render_facts(block)
    note = f'<p class="note">{escape(block.note)}</p>' if block.note else ""
    if isinstance(block, Code):
        return f"{note}<pre>{escape(block.text)}</pre>"
    title = f"<h3>{escape(block.title)}</h3>" if block.title else ""
    inner = _render_table(block) if isinstance(block, Table) else _render_grid(block, embed)
    return f'<div class="block">{title}{note}{inner}</div>'


def _render_facts(facts: Facts) -> str:
    tables = "".join(_render_facts_table(title, group) for title, group in facts.groups.items())
    columns = f'<div class="columns">{tables}</div>'
    return (
        f"<details><summary>{escape(facts.summary)}</summary>{columns}</details>"
        if facts.summary
        else columns
    )


def _render_facts_table(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(key.replace('_', ' '))}</td><td>{escape(format_setting(value))}</td></tr>"
        for key, value in facts.items()
    )
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="group">{heading}<table>{rows}</table></div>'


# Charts and tables


def _render_chart(chart: Chart) -> str:
    """Draw a chart; unless they are too many, its numbers are folded away under it."""
    table = make_chart_table(chart)
    few = 0 < len(table.rows) <= MOST_NUMBERS
    numbers = f"<details><summary>In numbers</summary>{_render_table(table)}</details>" if few else ""
    return (
        f'<figure class="chart"><h3>{escape(chart.title)}</h3><p class="note">{escape(chart.note)}</p>'
        f"{draw_chart(chart)}{numbers}</figure>"
    )


def _render_table(table: Table) -> str:
    """Write a table that scrolls by itself where it is wider than the page."""
    kinds = [
        _choose_class([row[place] for row in table.rows], column)
        for place, column in enumerate(table.headings)
    ]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(column.name)}</th>'
        for column, kind in zip(table.headings, kinds, strict=True)
    )
    body = "".join(_render_row(table, place, kinds) for place in range(len(table.rows)))
    inner = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="data">{inner}</table></div>'


def _render_row(table: Table, place: int, kinds: Sequence[str]) -> str:
    first, *others = table.rows[place]
    head, *columns = table.headings
    cells = "".join(
        f"<td{kind}>{_render_cell(cell, column)}</td>"
        for cell, column, kind in zip(others, columns, kinds[1:], strict=True)
    )
    strong = ' class="strong"' if place in table.strong else ""
    return f'<tr{strong}><th scope="row">{_render_cell(first, head)}</th>{cells}</tr>'


def _choose_class(cells: Sequence[Cell], column: Column) -> str:
    """Return a column's class: words are at the left, numbers leave room for the widest interval."""
    if any(isinstance(cell, str) for cell in cells):
        return ' class="words"'
    ends = (
        format_mean(cell, percent=column.percent, digits=column.digits)[1]
        for cell in cells
        if isinstance(cell, Interval)
    )
    # Brackets, points and commas are narrower than digits.
    width = 0.84 * max(map(len, ends), default=0)
    return f' class="ends" style="--room:{width:.1f}ch"' if width else ""


def _render_cell(cell: Cell, column: Column) -> str:
    """Write words as they are, numbers in their column's form, intervals in brackets behind their mean."""
    if isinstance(cell, str):
        return escape(cell)
    number, *ends = (
        ["–"] if cell is None else _number_and_ends(cell, percent=column.percent, digits=column.digits)
    )
    unit = " %" if column.percent and number != "–" else ""
    return f"{number}{unit} <small>{''.join(ends)}</small>"


def _number_and_ends(value: float | int | Interval | str, *, percent: bool, digits: int) -> list[str]:
    """Write a number, and behind it the ends of its interval if it has one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Interval):
        return [*format_mean(value, percent=percent, digits=digits)]
    return [format_number(value, percent=percent, digits=digits)]


# Pictures


def _render_grid(grid: Grid, embed: Embed) -> str:
    """Write rows of pictures, each row as one image, in two stacks where there is room."""
    if not grid.rows:
        return ""
    count = len(grid.titles)
    stacks = 1 if count > _WIDE or len(grid.rows) <= 2 else 2
    per_stack = -(-len(grid.rows) // stacks)
    titles = "".join(f"<span>{escape(title)}</span>" for title in grid.titles) if any(grid.titles) else ""
    inner = "".join(
        f'<div><div class="titles">{titles}</div>'
        f"{''.join(_render_picture_row(row, grid, embed) for row in stack)}</div>"
        for start in range(0, len(grid.rows), per_stack)
        for stack in [grid.rows[start : start + per_stack]]
    )
    wide = " wide" if count > _WIDE else ""
    style = f"--n:{count};--stacks:{stacks}"
    return f'<div class="scroll"><div class="stacks{wide}" style="{style}">{inner}</div></div>'


def _render_picture_row(row: PictureRow, grid: Grid, embed: Embed) -> str:
    image = embed(join_pictures(row.pictures))
    description = f"{row.label}: {', '.join(grid.titles)}" if row.label else ", ".join(grid.titles)
    label = f"<figcaption>{escape(row.label)}</figcaption>" if row.label else ""
    return (
        f'<figure class="strip"><div><img class="grid" src="{image.source}" width="{image.width}" '
        f'height="{image.height}" loading="lazy" alt="{escape(description)}"></div>{label}</figure>'
    )
