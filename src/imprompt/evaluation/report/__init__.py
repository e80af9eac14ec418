"""Reports: a page that holds everything, a small one to be kept, its figures as JSON, scores as a table.

report = Report("COCO", "IP-Adapter follows its image prompts.", [Section("Scores", "", [Table(...)])], {})
write_report(report, folder, summary)
write_scores(scores, folder)
"""

from imprompt.evaluation.report.blocks import (
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
from imprompt.evaluation.report.files import (
    make_folder,
    write_picture,
    write_report,
    write_scores,
    write_summary,
)

__all__ = [
    "Block",
    "Cell",
    "Column",
    "Grid",
    "Report",
    "Section",
    "Table",
    "Tile",
    "best_median_worst",
    "make_folder",
    "write_picture",
    "write_report",
    "write_scores",
    "write_summary",
]
