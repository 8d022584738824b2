"""report.html: one self-contained page."""

from loadgen.reports.html.page import write_report

__all__ = ["write_report"]
