"""The report's page, whole, and small enough to be kept in a repository."""

from collections.abc import Iterator
from dataclasses import replace

from imprompt.report.blocks import Grid, Report
from imprompt.report.markup import STYLE, Embedding, section_html, shortened, tile_html
from imprompt.report.pictures import Embedded, embed
from imprompt.report.skeleton import facts_table, page, safe, tiles

SMALL_BYTES = 580_000
STRIP_BYTES = 90_000
"""A row of pictures has no more bytes than this in the whole page."""

LEAST_STRIP_BYTES = 3_000
"""With less room than this for each row of pictures, rows are left out of the small page."""

_FOOTER = (
    "Written by <code>imprompt evaluate</code>. "
    "Every number is in <code>summary.json</code>, beside this page."
)


def whole_page(report: Report) -> str:
    """The page as HTML, with everything in it."""
    return page_html(report, lambda picture: embed(picture, STRIP_BYTES))


def small_page(report: Report) -> str:
    """The page as HTML, of at most `SMALL_BYTES`: smaller pictures and fewer rows, as few as that takes."""
    for short in _ever_shorter(report):
        words = len(page_html(short, lambda picture: Embedded("", *picture.size)).encode())
        # In base64 a picture is a third larger.
        room = (SMALL_BYTES - words) * 3 // 4 // max(_strips(short), 1)
        if room < LEAST_STRIP_BYTES and _strips(short):
            continue
        html = page_html(short, lambda picture, room=room: embed(picture, room))
        if len(html.encode()) <= SMALL_BYTES:
            return html
    return page_html(_cut(report, 0), lambda picture: Embedded("", *picture.size))


def _ever_shorter(report: Report) -> Iterator[Report]:
    """The report, then with fewer and fewer rows."""
    yield report
    for rows in (96, 48, 24, 12, 6, 3, 1, 0):
        yield _cut(report, rows)


def _cut(report: Report, rows: int) -> Report:
    """At most so many rows in each table and each grid."""
    sections = [
        replace(section, blocks=[shortened(block, rows) for block in section.blocks])
        for section in report.sections
    ]
    return replace(report, sections=sections)


def _strips(report: Report) -> int:
    """How many rows of pictures there are."""
    return sum(
        len(block.rows) for section in report.sections for block in section.blocks if isinstance(block, Grid)
    )


def page_html(report: Report, embedding: Embedding) -> str:
    """The page, its pictures put in by `embedding`."""
    figures = tiles(tile_html(one, first=place == 0) for place, one in enumerate(report.tiles))
    over = f'<p class="over">{safe(report.over)}</p>' if report.over else ""
    said = f'<h1>{safe(report.title)}</h1><p class="verdict">{safe(report.lead)}</p>'
    header = f"<header>{over}{said}{figures}</header>"
    sections = "".join(section_html(section, embedding) for section in report.sections)
    facts = facts_table("", report.facts) if report.facts else ""
    made = f'<section><h2>How it was made</h2><div class="columns">{facts}</div></section>' if facts else ""
    return page(report.title, header + sections + made, footer=_FOOTER, style=STYLE)
