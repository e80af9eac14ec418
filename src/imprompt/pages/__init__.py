"""Pages: one self-contained HTML file with charts, tables and pictures, light or dark as its reader is."""

from imprompt.pages.charts import Chart, Line, draw
from imprompt.pages.dots import Dot, DotPlot, draw_dots
from imprompt.pages.pictures import Embedded, embed

__all__ = ["Chart", "Dot", "DotPlot", "Embedded", "Line", "draw", "draw_dots", "embed"]
