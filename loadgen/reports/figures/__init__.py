"""The figures of the report, as SVG and PNG files and as what the page needs to show them."""

from loadgen.reports.figures.draw import draw_figures
from loadgen.reports.figures.sheet import Figure

__all__ = ["Figure", "draw_figures"]
