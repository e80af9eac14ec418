"""Reports: a whole page, a small one for a repository, their numbers as JSON, scores as a table.

report = Report("COCO", "IP-Adapter follows its image prompts.", [Section("Scores", "", [Table(...)])])
write_report(report, folder, summary)
write_scores(scores, folder)

blocks      what a page is made of
charts      lines as SVG                axes    their axes
pictures    sheets and pictures inside a page
numbers     numbers in words, and the interval
page        a report as HTML            look    its style sheet and script
summary     a report as data            files   the files of a report
"""

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
    pick_best_median_worst,
)
from imprompt.report.charts import Chart, Line, Tone, draw_chart, smooth_points, thin_points
from imprompt.report.files import (
    SCORES_FILE,
    SUMMARY_FILE,
    write_picture,
    write_report,
    write_scores,
)
from imprompt.report.numbers import Interval, format_mean, format_short, format_value
from imprompt.report.page import SMALL_BYTES, escape, render_page
from imprompt.report.pictures import PictureRow, draw_sheet, embed_picture, encode_jpeg, make_data_uri
from imprompt.report.summary import to_plain

__all__ = [
    "SCORES_FILE",
    "SMALL_BYTES",
    "SUMMARY_FILE",
    "Block",
    "Cell",
    "Chart",
    "Code",
    "Column",
    "Facts",
    "Grid",
    "Interval",
    "KeyFigure",
    "Line",
    "Markup",
    "PictureRow",
    "Report",
    "Section",
    "Table",
    "Tone",
    "draw_chart",
    "draw_sheet",
    "embed_picture",
    "encode_jpeg",
    "escape",
    "format_mean",
    "format_short",
    "format_value",
    "make_data_uri",
    "pick_best_median_worst",
    "render_page",
    "smooth_points",
    "thin_points",
    "to_plain",
    "write_picture",
    "write_report",
    "write_scores",
]
