"""Reports: a page that holds everything, a small one to be kept, its figures as JSON, scores as a table.

report = Report("COCO", "IP-Adapter follows its image prompts.", [Section("Scores", "", [Table(...)])], {})
write_report(report, folder, summary)
write_scores(scores, folder)
"""

from imprompt.report.blocks import (
    Block,
    Cell,
    Column,
    Grid,
    Report,
    Section,
    Table,
    Tile,
    best_median_worst,
)
from imprompt.report.charts import Chart, Line, draw
from imprompt.report.dots import Dot, DotPlot, draw_dots
from imprompt.report.files import (
    make_folder,
    write_picture,
    write_report,
    write_scores,
    write_summary,
)
from imprompt.report.interval import Interval
from imprompt.report.pictures import Embedded, embed

__all__ = [
    "Block",
    "Cell",
    "Chart",
    "Column",
    "Dot",
    "DotPlot",
    "Embedded",
    "Grid",
    "Interval",
    "Line",
    "Report",
    "Section",
    "Table",
    "Tile",
    "best_median_worst",
    "draw",
    "draw_dots",
    "embed",
    "make_folder",
    "write_picture",
    "write_report",
    "write_scores",
    "write_summary",
]
