"""The parts that our pages share: the page itself, its key figures, its charts, its lists of facts.

A page is one file: it loads nothing from outside itself.
"""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from imprompt.report.charts import Chart, draw
from imprompt.report.dots import DotPlot, draw_dots
from imprompt.report.look import SCRIPT, STYLE


def page(title: str, body: str, *, footer: str, style: str = "", script: str = "") -> str:
    """A whole page as HTML.

    Args:
        title: plain text, for the window
        body: HTML
        footer: HTML, one line
        style: rules of this page's own
        script: of this page's own; without it the page must be readable
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)} · imprompt</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>{footer}</footer>\n</main>\n"
        f'<dialog><img alt="The grid in full size"></dialog>\n<script>{SCRIPT}{script}</script>\n'
        "</body>\n</html>\n"
    )


def tiles(several: Iterable[str]) -> str:
    """Key figures side by side; nothing if there are none."""
    shown = "".join(several)
    return f'<dl class="figures">{shown}</dl>' if shown else ""


def tile(value: str, name: str, beside: str, *, first: bool = False) -> str:
    """A key figure: its value (HTML), its name, and what to compare it with."""
    kind = ' class="first"' if first else ""
    return f"<div><dt>{safe(name)}</dt><dd{kind}>{value}</dd><span>{safe(beside)}</span></div>"


def chart_figure(chart: Chart | DotPlot, below: str = "") -> str:
    """A chart with its title and its note, and HTML below it."""
    drawn = draw(chart) if isinstance(chart, Chart) else draw_dots(chart)
    return (
        f'<figure class="chart"><h3>{safe(chart.title)}</h3><p class="note">{safe(chart.note)}</p>'
        f"{drawn}{below}</figure>"
    )


def facts_table(title: str, facts: Mapping[str, Any]) -> str:
    """Names and values."""
    rows = "".join(
        f"<tr><td>{safe(key.replace('_', ' '))}</td><td>{safe(in_words(value))}</td></tr>"
        for key, value in facts.items()
    )
    heading = f"<h3>{safe(title)}</h3>" if title else ""
    return f'<div class="group">{heading}<table>{rows}</table></div>'


def in_words(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(f"“{item}”" if isinstance(item, str) else in_words(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value in ("", None) else f"{value:g}" if isinstance(value, float) else str(value)


def safe(text: str) -> str:
    """Text as HTML."""
    return html.escape(text)
